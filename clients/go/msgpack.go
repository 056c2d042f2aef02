package typha

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"
)

// A decoder reads msgpack values of known kinds. It copies what it returns, allocates nothing for announced lengths,
// and skips what it does not know without recursion. The first problem sticks in err.
type decoder struct {
	data []byte
	err  error
}

var (
	errEnds  = errors.New("a message is incomplete")
	errKind  = errors.New("a value is of the wrong kind")
	errLimit = errors.New("a value is above its limit")
	errUTF8  = errors.New("a text is not UTF-8")
)

func (d *decoder) fail(err error) {
	if d.err == nil {
		d.err = err
	}
	d.data = nil
}

func (d *decoder) take(count uint64) []byte {
	if uint64(len(d.data)) < count {
		d.fail(errEnds)
		return nil
	}
	taken := d.data[:count]
	d.data = d.data[count:]
	return taken
}

func (d *decoder) tag() byte {
	if taken := d.take(1); taken != nil {
		return taken[0]
	}
	return 0xc1 // never used in msgpack
}

func (d *decoder) bigEndian(width uint64) uint64 {
	var value uint64
	for _, digit := range d.take(width) {
		value = value<<8 | uint64(digit)
	}
	return value
}

// integer reads an integer in any encoding: its absolute value, and whether it is negative.
func (d *decoder) integer() (value uint64, negative bool) {
	switch tag := d.tag(); {
	case tag <= 0x7f:
		return uint64(tag), false
	case tag >= 0xe0:
		return uint64(-int64(int8(tag))), true
	case tag >= 0xcc && tag <= 0xcf:
		return d.bigEndian(1 << (tag - 0xcc)), false
	case tag >= 0xd0 && tag <= 0xd3:
		width := uint64(1) << (tag - 0xd0)
		shift := 64 - 8*width
		signed := int64(d.bigEndian(width)<<shift) >> shift
		if signed < 0 {
			return -uint64(signed), true
		}
		return uint64(signed), false
	}
	d.fail(errKind)
	return 0, false
}

// count reads an unsigned integer.
func (d *decoder) count() uint64 {
	value, negative := d.integer()
	if negative {
		d.fail(errKind)
	}
	return value
}

// signed reads an integer of 64 bits.
func (d *decoder) signed() int64 {
	value, negative := d.integer()
	switch {
	case negative && value <= 1<<63:
		return -int64(value)
	case !negative && value < 1<<63:
		return int64(value)
	}
	d.fail(errKind)
	return 0
}

func (d *decoder) boolean() bool {
	switch d.tag() {
	case 0xc2:
		return false
	case 0xc3:
		return true
	}
	d.fail(errKind)
	return false
}

// isNil consumes a nil, if there is one.
func (d *decoder) isNil() bool {
	if len(d.data) > 0 && d.data[0] == 0xc0 {
		d.data = d.data[1:]
		return true
	}
	return false
}

// text reads a text of at most this many code points.
func (d *decoder) text(limit int) string {
	var length uint64
	switch tag := d.tag(); {
	case tag >= 0xa0 && tag <= 0xbf:
		length = uint64(tag & 0x1f)
	case tag >= 0xd9 && tag <= 0xdb:
		length = d.bigEndian(1 << (tag - 0xd9))
	default:
		d.fail(errKind)
		return ""
	}
	taken := d.take(length)
	if length > uint64(limit)*utf8.UTFMax || utf8.RuneCount(taken) > limit {
		d.fail(errLimit)
		return ""
	}
	if !utf8.Valid(taken) {
		d.fail(errUTF8)
		return ""
	}
	return string(taken)
}

// bytes reads a copy of a bin, which is never nil.
func (d *decoder) bytes() []byte {
	tag := d.tag()
	if tag < 0xc4 || tag > 0xc6 {
		d.fail(errKind)
		return nil
	}
	taken := d.take(d.bigEndian(1 << (tag - 0xc4)))
	return append(make([]byte, 0, len(taken)), taken...)
}

// array reads the length of an array. The elements follow.
func (d *decoder) array() uint64 {
	switch tag := d.tag(); {
	case tag >= 0x90 && tag <= 0x9f:
		return uint64(tag & 0x0f)
	case tag == 0xdc || tag == 0xdd:
		return d.bigEndian(2 << (tag - 0xdc))
	}
	d.fail(errKind)
	return 0
}

// object reads the number of members of a map. Names and values follow in turn.
func (d *decoder) object() uint64 {
	switch tag := d.tag(); {
	case tag >= 0x80 && tag <= 0x8f:
		return uint64(tag & 0x0f)
	case tag == 0xde || tag == 0xdf:
		return d.bigEndian(2 << (tag - 0xde))
	}
	d.fail(errKind)
	return 0
}

// skip passes over values of any kind, however deep they are.
func (d *decoder) skip(count uint64) {
	for ; count > 0 && d.err == nil; count-- {
		tag := d.tag()
		switch {
		case tag <= 0x7f || tag >= 0xe0 || tag == 0xc0 || tag == 0xc2 || tag == 0xc3:
		case tag <= 0x8f:
			count += 2 * uint64(tag&0x0f)
		case tag <= 0x9f:
			count += uint64(tag & 0x0f)
		case tag <= 0xbf:
			d.take(uint64(tag & 0x1f))
		case tag >= 0xc4 && tag <= 0xc6:
			d.take(d.bigEndian(1 << (tag - 0xc4)))
		case tag >= 0xc7 && tag <= 0xc9: // ext, with its type
			d.take(1 + d.bigEndian(1<<(tag-0xc7)))
		case tag == 0xca || tag == 0xcb:
			d.take(4 << (tag - 0xca))
		case tag >= 0xcc && tag <= 0xcf:
			d.take(1 << (tag - 0xcc))
		case tag >= 0xd0 && tag <= 0xd3:
			d.take(1 << (tag - 0xd0))
		case tag >= 0xd4 && tag <= 0xd8: // fixext, with its type
			d.take(1 + 1<<(tag-0xd4))
		case tag >= 0xd9 && tag <= 0xdb:
			d.take(d.bigEndian(1 << (tag - 0xd9)))
		case tag == 0xdc || tag == 0xdd:
			count += d.bigEndian(2 << (tag - 0xdc))
		case tag == 0xde || tag == 0xdf:
			count += 2 * d.bigEndian(2<<(tag-0xde))
		default:
			d.fail(errKind)
		}
	}
}

// What follows encodes the few kinds that a client sends.

func appendText(to []byte, text string) []byte {
	switch length := len(text); {
	case length < 32:
		to = append(to, 0xa0|byte(length))
	case length < 1<<8:
		to = append(to, 0xd9, byte(length))
	default:
		to = append(to, 0xda)
		to = binary.BigEndian.AppendUint16(to, uint16(length))
	}
	return append(to, text...)
}

func appendCount(to []byte, value uint64) []byte {
	if value < 1<<7 {
		return append(to, byte(value))
	}
	return binary.BigEndian.AppendUint64(append(to, 0xcf), value)
}
