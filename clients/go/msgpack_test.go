package typha

import (
	"math"
	"strings"
	"testing"
)

func TestEveryEncodingOfAnInteger(t *testing.T) {
	cases := []struct {
		data string
		want int64
	}{
		{"\x00", 0}, {"\x7f", 127}, {"\xff", -1}, {"\xe0", -32},
		{"\xcc\xff", 255}, {"\xcd\x01\x00", 256}, {"\xce\xff\xff\xff\xff", math.MaxUint32},
		{"\xcf\x7f\xff\xff\xff\xff\xff\xff\xff", math.MaxInt64},
		{"\xd0\x80", -128}, {"\xd1\xff\xfe", -2}, {"\xd2\x00\x00\x00\x05", 5},
		{"\xd3\x80\x00\x00\x00\x00\x00\x00\x00", math.MinInt64}, {"\xd3\x00\x00\x00\x00\x00\x00\x00\x07", 7},
	}
	for _, one := range cases {
		d := &decoder{data: []byte(one.data)}
		if found := d.signed(); found != one.want || d.err != nil || len(d.data) != 0 {
			t.Errorf("%x: %d, %v", one.data, found, d.err)
		}
		d = &decoder{data: []byte(one.data)}
		if d.count(); (d.err == nil) != (one.want >= 0) {
			t.Errorf("%x as a count: %v", one.data, d.err)
		}
	}
	d := &decoder{data: []byte("\xcf\xff\xff\xff\xff\xff\xff\xff\xff")}
	if found := d.count(); found != math.MaxUint64 || d.err != nil {
		t.Errorf("the largest count is %d, %v", found, d.err)
	}
	for _, data := range []string{"\xca\x3f\x80\x00\x00", "\xc3", "\xc0", "\xa11", "", "\xcd\x01"} {
		d := &decoder{data: []byte(data)}
		if d.count(); d.err == nil {
			t.Errorf("%x is taken for a count", data)
		}
	}
}

func TestSkippingNeedsNoRecursion(t *testing.T) {
	deep := strings.Repeat("\x91", 1_000_000) + "\xc0"
	d := &decoder{data: []byte(deep + "\x07")}
	d.skip(1)
	if found := d.count(); found != 7 || d.err != nil {
		t.Errorf("%d, %v", found, d.err)
	}
	for _, kind := range []string{
		"\xc7\x01\x05x", "\xd4\x05x", "\xd8\x05" + strings.Repeat("x", 16), "\xcb" + strings.Repeat("x", 8),
		"\xdc\x00\x02\x01\xa1x", "\xde\x00\x01\xa1k\xc4\x01v", "\xdf\x00\x00\x00\x01\x01\xc2", "\xdb\x00\x00\x00\x01x",
	} {
		d := &decoder{data: []byte(kind)}
		if d.skip(1); d.err != nil || len(d.data) != 0 {
			t.Errorf("%x: %v, %d left", kind, d.err, len(d.data))
		}
	}
	for _, bad := range []string{"\xdd\xff\xff\xff\xff\x01", "\xdf\xff\xff\xff\xff\x01", "\xc6\xff\xff\xff\xff", "\xc1", "\x92\x01"} {
		d := &decoder{data: []byte(bad)}
		if d.skip(1); d.err == nil {
			t.Errorf("%x is skipped", bad)
		}
	}
}

func TestTextLimitsAreCodePoints(t *testing.T) {
	grin := strings.Repeat("\U0001f600", maxKeyChars)
	for text, good := range map[string]bool{grin: true, grin + "x": false, "\xff": false, strings.Repeat("é", 4096): true} {
		d := &decoder{data: append([]byte{0xda, byte(len(text) >> 8), byte(len(text))}, text...)}
		if found := d.text(maxKeyChars); (d.err == nil) != good || (good && found != text) {
			t.Errorf("%.8q of %d bytes: %v", text, len(text), d.err)
		}
	}
}
