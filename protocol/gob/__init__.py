"""Go's encoding/gob, as far as a peer needs it: any stream is read, and values of fixed types are written.

Pure and incremental; nothing here knows what the messages mean. The format is described in Go's documentation of the
package; what is accepted and refused follows Go's own decoder.
"""
