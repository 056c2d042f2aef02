"""Checks whether a text compiles as a regular expression of Go (RE2 syntax). It is never used for matching. Pure.

Syntax that Python accepts and Go does not is invalid here (look-around, back references, possessive repeats). Syntax
that only Go accepts is valid (`\\pL`, `\\Q...\\E`, `(?U)`, `[[:alpha:]]`, `\\z`).
"""

import re

_MAX_REPEAT = 1000
_MAX_DEPTH = 1000
_REPEAT = re.compile(r"\{(0|[1-9][0-9]*)(?:(,)(0|[1-9][0-9]*)?)?\}")
_GROUP_NAME = re.compile(r"\?P?<([A-Za-z0-9_]+)>")
_GROUP_FLAGS = re.compile(r"\?[imsU]*(?:-[imsU]+)?([:)])")
_POSIX_CLASS = re.compile(
    r"\[:\^?(?:alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]"
)
_PROPERTY = re.compile(r"[pP](?:\{\^?([^}]*)\}|(.))", re.DOTALL)
_HEX = re.compile(r"x(?:([0-9A-Fa-f]{2})|\{0*([0-9A-Fa-f]{1,6})\})")
_OCTAL = re.compile(r"(?:0[0-7]{0,2}|[1-7][0-7]{1,2})")
_CLASS_ESCAPES = "dDsSwW"
_CONTROL_ESCAPES = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_ASSERTIONS = "AbBz"
_LARGEST_CODE_POINT = 0x10FFFF
_SEPARATORS = str.maketrans("", "", "_- ")
# Go compares names without separators and case. It therefore never finds scripts whose names have several words.
_CLASS_NAME_LIST = """
Any Assigned Ascii C Cc Cf Cn Co Cs L Lc Ll Lm Lo Lt Lu M Mc Me Mn N Nd Nl No P Pc Pd Pe Pf Pi Po Ps S Sc Sk Sm So
Z Zl Zp Zs
Casedletter Closepunctuation Cntrl Combiningmark Connectorpunctuation Control Currencysymbol Dashpunctuation
Decimalnumber Digit Enclosingmark Finalpunctuation Format Initialpunctuation Letter Letternumber Lineseparator
Lowercaseletter Mark Mathsymbol Modifierletter Modifiersymbol Nonspacingmark Number Openpunctuation Other
Otherletter Othernumber Otherpunctuation Othersymbol Paragraphseparator Privateuse Punct Punctuation Separator
Spaceseparator Spacingmark Surrogate Symbol Titlecaseletter Unassigned Uppercaseletter
Adlam Ahom Arabic Armenian Avestan Balinese Bamum Batak Bengali Bhaiksuki Bopomofo Brahmi Braille Buginese Buhid
Carian Chakma Cham Cherokee Chorasmian Common Coptic Cuneiform Cypriot Cyrillic Deseret Devanagari Dogra
Duployan Elbasan Elymaic Ethiopic Georgian Glagolitic Gothic Grantha Greek Gujarati Gurmukhi Han Hangul Hanunoo
Hatran Hebrew Hiragana Inherited Javanese Kaithi Kannada Katakana Kawi Kharoshthi Khmer Khojki Khudawadi Lao
Latin Lepcha Limbu Lisu Lycian Lydian Mahajani Makasar Malayalam Mandaic Manichaean Marchen Medefaidrin Miao
Modi Mongolian Mro Multani Myanmar Nabataean Nandinagari Newa Nko Nushu Ogham Oriya Osage Osmanya Palmyrene
Phoenician Rejang Runic Samaritan Saurashtra Sharada Shavian Siddham Sinhala Sogdian Soyombo Sundanese Syriac
Tagalog Tagbanwa Takri Tamil Tangsa Tangut Telugu Thaana Thai Tibetan Tifinagh Tirhuta Toto Ugaritic Vai
Vithkuqi Wancho Yezidi Yi
"""
_CLASS_NAMES = frozenset(_CLASS_NAME_LIST.split())


class _Invalid(ValueError):
    """The expression does not compile."""


def compiles(pattern: str) -> bool:
    """Return whether Go's regexp.Compile accepts the pattern."""
    try:
        _Reader(pattern).read()
    except _Invalid:
        return False
    return True


class _Reader:
    """Reads an expression from left to right. It remembers only the last operand, and how often that is repeated."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._last_class_end = pattern.rfind(":]")
        # Repeats inside the last operand. None if there is nothing that a repeat could apply to.
        self._operand: int | None = None
        # The same for everything before it, for every open group.
        self._groups = [1]

    def read(self) -> None:
        """Raises _Invalid."""
        repeated = False
        while self._position < len(self._pattern):
            character = self._pattern[self._position]
            counted = _REPEAT.match(self._pattern, self._position) if character == "{" else None
            if character in "*+?" or counted:
                if self._operand is None or repeated:
                    raise _Invalid("nothing to repeat, or a repeat of a repeat")
                self._operand = self._repeat(self._operand, counted)
                repeated = True
            else:
                self._item(character)
                repeated = False
        if len(self._groups) > 1:
            raise _Invalid("missing )")

    def _repeat(self, operand: int, counted: "re.Match[str] | None") -> int:
        if counted is None:
            self._position += 1
        else:
            low = _limited(counted[1])
            high = _limited(counted[3]) if counted[3] else low
            if high < low:
                raise _Invalid("a repeat's bounds are not in order")
            if counted[2] or high:
                operand *= max(high, 1)
            else:
                operand = 1
            if operand > _MAX_REPEAT and high > 1:
                raise _Invalid("too many repeats")
            self._position = counted.end()
        if self._pattern.startswith("?", self._position):
            self._position += 1
        return operand

    def _next_operand(self, operand: int | None) -> None:
        """Start a new last operand. A repeat can apply to the previous one only together with its group."""
        self._groups[-1] = max(self._groups[-1], self._operand or 1)
        self._operand = operand

    def _item(self, character: str) -> None:
        pattern, position = self._pattern, self._position
        if character == "(":
            self._open()
        elif character == ")":
            self._position += 1
            self._next_operand(None)
            if len(self._groups) == 1:
                raise _Invalid("unexpected )")
            inner = self._groups.pop()
            self._next_operand(inner)
        elif character == "|":
            self._position += 1
            self._next_operand(None)
        elif pattern.startswith("\\Q", position):
            end = pattern.find("\\E", position + 2)
            literal = pattern[position + 2 : end] if end >= 0 else pattern[position + 2 :]
            self._position = len(pattern) if end < 0 else end + 2
            if literal:
                self._next_operand(1)
        else:
            self._next_operand(1)
            if character == "[":
                self._class()
            elif character == "\\":
                self._escape()
            else:
                self._position += 1

    def _open(self) -> None:
        self._position += 1
        if self._pattern.startswith("?", self._position):
            matched = _GROUP_NAME.match(self._pattern, self._position)
            if matched is None:
                matched = _GROUP_FLAGS.match(self._pattern, self._position)
                if matched is None:
                    raise _Invalid("a group of an unknown kind")
                if matched[1] == ")":  # flags alone: the last operand stays
                    self._position = matched.end()
                    return
            self._position = matched.end()
        self._next_operand(None)
        self._groups.append(1)
        if len(self._groups) > _MAX_DEPTH:
            raise _Invalid("nested too deep")

    def _escape(self) -> None:
        following = self._pattern[self._position + 1 : self._position + 2]
        if following and following in _ASSERTIONS + _CLASS_ESCAPES:
            self._position += 2
        elif not self._property():
            self._character()

    def _property(self) -> bool:
        matched = _PROPERTY.match(self._pattern, self._position + 1)
        if matched is None:
            return False
        name = (matched[1] or matched[2] or "").removeprefix("^").translate(_SEPARATORS)
        if not name.isascii() or name[:1].upper() + name[1:].lower() not in _CLASS_NAMES:
            raise _Invalid(f"an unknown class of characters: {name[:40]!r}")
        self._position = matched.end()
        return True

    def _character(self) -> int:
        """Read one character of a class, or an escaped one. Return its code point."""
        if self._position >= len(self._pattern):
            raise _Invalid("missing ]")
        character = self._pattern[self._position]
        if character != "\\":
            self._position += 1
            return ord(character)
        following = self._pattern[self._position + 1 : self._position + 2]
        if matched := _OCTAL.match(self._pattern, self._position + 1):
            self._position = matched.end()
            return int(matched[0], 8)
        if matched := _HEX.match(self._pattern, self._position + 1):
            self._position = matched.end()
            value = int(matched[1] or matched[2], 16)
            if value > _LARGEST_CODE_POINT:
                raise _Invalid("beyond the largest code point")
            return value
        if following in _CONTROL_ESCAPES:
            self._position += 2
            return _CONTROL_ESCAPES[following]
        if not following or not following.isascii() or following.isalnum():
            raise _Invalid(f"an unknown escape: {following!r}")
        self._position += 2
        return ord(following)

    def _class(self) -> None:
        self._position += 1
        if self._pattern.startswith("^", self._position):
            self._position += 1
        first = True
        while first or not self._pattern.startswith("]", self._position):
            self._class_member()
            first = False
        self._position += 1

    def _class_member(self) -> None:
        pattern = self._pattern
        if pattern.startswith("[:", self._position) and self._posix_class():
            return
        if pattern.startswith("\\", self._position):
            if pattern[self._position + 1 : self._position + 2] in tuple(_CLASS_ESCAPES):
                self._position += 2
                return
            if self._property():
                return
        low = self._character()
        if pattern.startswith("-", self._position) and pattern[self._position + 1 : self._position + 2] not in (
            "",
            "]",
        ):
            self._position += 1
            if self._character() < low:
                raise _Invalid("a range is not in order")

    def _posix_class(self) -> bool:
        if matched := _POSIX_CLASS.match(self._pattern, self._position):
            self._position = matched.end()
            return True
        if self._last_class_end >= self._position + 2:
            raise _Invalid("an unknown class of characters")
        return False


def _limited(text: str) -> int:
    if len(text) > 4 or int(text) > _MAX_REPEAT:
        raise _Invalid("too many repeats")
    return int(text)
