package keyring

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
)

// A recovery key is a password that is made by us and kept on paper: 200 random
// bits as eight groups of six characters,
//
//	K7QX2M-…-… (8 groups)
//
// of an alphabet without look-alikes. The last character of each group checks
// the group and its place, so that a typo is found without asking the
// repository, and the group that it is in is named.
//
// The check is a sum over GF(32), the field of the characters' values, with the
// powers of its generator as weights and the group's number added: any one
// character that is wrong changes it, and so does swapping two neighbours, or
// two groups.
const (
	recoveryGroups   = 8
	recoveryGroup    = 6 // characters, the last one for the check
	recoveryAlphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
	// gfModulus is x⁵ + x² + 1, a primitive polynomial: x generates the field.
	gfModulus = 0b100101
)

// ErrRecoveryKey: what was given looks like a recovery key and has a mistake.
var ErrRecoveryKey = errors.New("the recovery key has a typing mistake")

// NewRecoveryKey draws a recovery key.
func NewRecoveryKey() string {
	random := make([]byte, recoveryGroups*(recoveryGroup-1))
	rand.Read(random) // never fails (crypto/rand)
	var groups []string
	for g := range recoveryGroups {
		values := random[g*(recoveryGroup-1) : (g+1)*(recoveryGroup-1)]
		text := make([]byte, 0, recoveryGroup)
		for i := range values {
			values[i] %= 32
			text = append(text, recoveryAlphabet[values[i]])
		}
		groups = append(groups, string(append(text, recoveryAlphabet[recoveryCheck(g, values)])))
	}
	return strings.Join(groups, "-")
}

// recoveryCheck is the value of a group's last character.
func recoveryCheck(group int, values []byte) byte {
	sum, weight := byte(group), byte(1)
	for _, v := range values {
		weight = gfMul(weight, 2)
		sum ^= gfMul(weight, v)
	}
	return sum
}

// gfMul multiplies in GF(32).
func gfMul(a, b byte) byte {
	var p byte
	for ; b > 0; b >>= 1 {
		if b&1 != 0 {
			p ^= a
		}
		if a <<= 1; a >= 32 {
			a ^= gfModulus
		}
	}
	return p
}

// recoveryValue reads a character as people write it.
func recoveryValue(c rune) (byte, bool) {
	switch c {
	case 'O', 'o':
		c = '0'
	case 'I', 'i', 'L', 'l':
		c = '1'
	}
	i := strings.IndexRune(recoveryAlphabet, []rune(strings.ToUpper(string(c)))[0])
	return byte(max(i, 0)), i >= 0
}

// CheckRecoveryKey reads a recovery key as it was typed: in capitals or not,
// with dashes or spaces. It returns its one spelling, which is the password, or
// an error matching [ErrRecoveryKey] that names the group with the mistake and
// does not repeat what was typed.
func CheckRecoveryKey(typed string) (string, error) {
	fields := strings.FieldsFunc(typed, func(c rune) bool { return c == '-' || c == ' ' || c == '\t' })
	if len(fields) == 1 && len(fields[0]) == recoveryGroups*recoveryGroup { // typed without a break
		whole := fields[0]
		fields = nil
		for ; whole != ""; whole = whole[recoveryGroup:] {
			fields = append(fields, whole[:recoveryGroup])
		}
	}
	for g, f := range fields {
		text, err := checkGroup(g, f)
		if err != nil {
			return "", fmt.Errorf("%w: group %d of %d %w", ErrRecoveryKey, g+1, recoveryGroups, err)
		}
		fields[g] = text
	}
	if len(fields) != recoveryGroups {
		return "", fmt.Errorf("%w: it has %d groups instead of %d", ErrRecoveryKey, len(fields), recoveryGroups)
	}
	return strings.Join(fields, "-"), nil
}

func checkGroup(group int, typed string) (string, error) {
	if n := len([]rune(typed)); n != recoveryGroup {
		return "", fmt.Errorf("has %d characters instead of %d", n, recoveryGroup)
	}
	var values, text []byte
	for _, c := range typed {
		v, ok := recoveryValue(c)
		if !ok {
			return "", fmt.Errorf("has a character that recovery keys do not have (character %d)", len(values)+1)
		}
		values, text = append(values, v), append(text, recoveryAlphabet[v])
	}
	last := recoveryGroup - 1
	if recoveryCheck(group, values[:last]) != values[last] {
		return "", errors.New("is not as it was printed")
	}
	return string(text), nil
}

// recoverySpelling is the password that was meant: a recovery key in its one
// spelling, anything else as it is.
func recoverySpelling(password []byte) []byte {
	if key, err := CheckRecoveryKey(string(password)); err == nil {
		return []byte(key)
	}
	return password
}

// wrongPassword is ErrWrongPassword, and where the password looks like a
// recovery key, where the mistake is.
func wrongPassword(password []byte) error {
	typed := string(password)
	alike := 0
	for _, f := range strings.FieldsFunc(typed, func(c rune) bool { return c == '-' || c == ' ' }) {
		if len(f) == recoveryGroup {
			alike++
		}
	}
	if alike < recoveryGroups-2 && len(typed) != recoveryGroups*recoveryGroup {
		return ErrWrongPassword
	}
	if _, err := CheckRecoveryKey(typed); err != nil {
		return fmt.Errorf("%w (%w)", ErrWrongPassword, err)
	}
	return ErrWrongPassword
}
