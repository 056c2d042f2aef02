package typha

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
)

// pairDigest is the digest of a key and its value.
func pairDigest(key string, value []byte) uint64 {
	hash := sha256.New()
	var length [4]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(key)))
	hash.Write(length[:])
	hash.Write([]byte(key))
	hash.Write(value)
	var sum [sha256.Size]byte
	return binary.BigEndian.Uint64(hash.Sum(sum[:0]))
}

// chunkOf is the number of a key's chunk, of so many, which is a power of two.
func chunkOf(key string, chunks uint64) uint64 {
	return uint64(crc32.ChecksumIEEE([]byte(key))) & (chunks - 1)
}

// StateDigest returns the number that shows whether two maps hold the same keys and values (section 5 of the protocol).
func StateDigest(content map[string][]byte) uint64 {
	var total uint64
	for key, value := range content {
		total += pairDigest(key, value)
	}
	return total
}
