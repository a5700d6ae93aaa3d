"""The network as it is seen: captured in one spelling, its operations told apart, its constants folded."""
