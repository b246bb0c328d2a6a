"""The staging pool: daily directories, the lock of a run, its journal and record, and the claims of its workers."""
