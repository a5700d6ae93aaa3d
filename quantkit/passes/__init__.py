"""The shared engine of estimators: perturbed forward passes, Hessian-vector products, and how items reach the network."""
