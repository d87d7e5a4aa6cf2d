package lvm

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of LVM's metadata text, so that no guest can make it expensive. A real
// volume group with a thousand volumes takes about half a megabyte.
const (
	maxText  = 16 << 20
	maxDepth = 8
	maxNodes = 1 << 20
)

// section is a part of the metadata text: `name { key = value … section … }`.
type section struct {
	values   map[string]value
	sections map[string]*section
	order    []string // names of the sections, as they come
}

// value is a string, a number, or a list of them.
type value struct {
	text   string
	number int64
	list   []value
	kind   byte // 's', 'n' or 'l'
}

func (s *section) str(key string) string { return s.values[key].text }

// num returns a number that is not negative, or an error that names it.
func (s *section) num(key string) (int64, error) {
	v, ok := s.values[key]
	if !ok || v.kind != 'n' || v.number < 0 {
		return 0, corrupt("its metadata has no sound %q", key)
	}
	return v.number, nil
}

func (s *section) has(key, word string) bool {
	for _, v := range s.values[key].list {
		if v.text == word {
			return true
		}
	}
	return false
}

// parser reads the metadata text (LVM2, lib/config: its grammar is in
// lvm.conf(5)). Comments go to the end of the line.
type parser struct {
	text  string
	at    int
	nodes int
}

func parseText(text string) (*section, error) {
	if len(text) > maxText {
		return nil, corrupt("metadata of %d bytes", len(text))
	}
	p := &parser{text: text}
	return p.section(0)
}

func (p *parser) errorf(format string, args ...any) error {
	return corrupt("its metadata, line %d: %s", 1+strings.Count(p.text[:min(p.at, len(p.text))], "\n"), fmt.Sprintf(format, args...))
}

// section reads up to the closing brace, or at depth 0 to the end of the text.
func (p *parser) section(depth int) (*section, error) {
	if depth > maxDepth {
		return nil, p.errorf("sections within sections, too deep")
	}
	s := &section{values: map[string]value{}, sections: map[string]*section{}}
	for {
		p.space()
		switch c := p.peek(); {
		case c == 0 && depth == 0:
			return s, nil
		case c == '}' && depth > 0:
			p.at++
			return s, nil
		case c == 0:
			return nil, p.errorf("the text ends in a section")
		}
		if err := p.entry(s, depth); err != nil {
			return nil, err
		}
	}
}

func (p *parser) entry(s *section, depth int) error {
	name := p.word()
	if name == "" {
		return p.errorf("%q where a name is expected", p.peek())
	}
	if p.nodes++; p.nodes > maxNodes {
		return p.errorf("too long")
	}
	p.space()
	switch p.peek() {
	case '=':
		p.at++
		v, err := p.value(true)
		if err != nil {
			return err
		}
		s.values[name] = v
	case '{':
		p.at++
		sub, err := p.section(depth + 1)
		if err != nil {
			return err
		}
		if s.sections[name] == nil {
			s.order = append(s.order, name)
		}
		s.sections[name] = sub
	default:
		return p.errorf("%q is followed by neither = nor {", name)
	}
	return nil
}

func (p *parser) value(listAllowed bool) (value, error) {
	p.space()
	if p.nodes++; p.nodes > maxNodes {
		return value{}, p.errorf("too long")
	}
	switch c := p.peek(); {
	case c == '"':
		text, err := p.quoted()
		return value{text: text, kind: 's'}, err
	case c == '[' && listAllowed:
		p.at++
		return p.list()
	case c == '-' || c >= '0' && c <= '9':
		word := p.word()
		if n, err := strconv.ParseInt(word, 10, 64); err == nil {
			return value{number: n, kind: 'n'}, nil
		}
		return value{text: word, kind: 's'}, nil // a float; none has a meaning here
	}
	return value{}, p.errorf("%q where a value is expected", p.peek())
}

func (p *parser) list() (value, error) {
	v := value{kind: 'l'}
	for {
		p.space()
		if p.peek() == ']' {
			p.at++
			return v, nil
		}
		item, err := p.value(false)
		if err != nil {
			return v, err
		}
		v.list = append(v.list, item)
		p.space()
		if p.peek() == ',' {
			p.at++
		}
	}
}

// quoted reads a string; a backslash takes the next character as it is.
func (p *parser) quoted() (string, error) {
	var b strings.Builder
	for p.at++; p.at < len(p.text); p.at++ {
		switch c := p.text[p.at]; c {
		case '"':
			p.at++
			return b.String(), nil
		case '\\':
			if p.at++; p.at < len(p.text) {
				b.WriteByte(p.text[p.at])
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", p.errorf("a string without an end")
}

// word reads a name or number. LVM's names are of [a-zA-Z0-9_.+-].
func (p *parser) word() string {
	from := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("_.+-/@", c) >= 0 {
			p.at++
			continue
		}
		break
	}
	return p.text[from:p.at]
}

func (p *parser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

// space skips blanks and comments. A zero byte, with which the text is padded,
// ends it.
func (p *parser) space() {
	for p.at < len(p.text) {
		switch p.text[p.at] {
		case ' ', '\t', '\n', '\r':
			p.at++
		case '#':
			end := strings.IndexByte(p.text[p.at:], '\n')
			if end < 0 {
				end = len(p.text) - p.at
			}
			p.at += end
		case 0:
			p.text = p.text[:p.at]
		default:
			return
		}
	}
}
