"""Models of the paper that transformers does not have: configuration, model and processor of each, in a package of its
own that needs nothing but transformers, and the registry by which transformers' auto classes find them."""
