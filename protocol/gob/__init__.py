"""Internal: Go's encoding/gob, as far as Typha's protocol needs it. Pure and incremental.

It decodes any stream, and encodes values of fixed types. Go's documentation of the package specifies the format; this
decoder accepts and refuses what Go's decoder does.
"""
