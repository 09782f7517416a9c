"""From a store on disk to packed batches."""
