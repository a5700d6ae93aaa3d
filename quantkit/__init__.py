"""Mixed-precision quantization under an accuracy promise that is checked on the file that ships."""
