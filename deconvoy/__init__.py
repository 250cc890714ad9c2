"""Deconvoy: what each feature map of a convolutional network sees, at data-set scale."""
