"""Model files where they are stored: the catalog, headers, mirrors of buckets. `models/files` reads their tensors."""
