"""What a browser shows of a run.  Looks, never computes; reads results through `deconvoy` alone."""
