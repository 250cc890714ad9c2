"""The compute: models, images, top-9, deconvnet, occlusion, the ledger, the driver, executors."""
