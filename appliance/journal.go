package appliance

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"go.etcd.io/bbolt"

	"lifeboat/vsphere"
)

// The journal of intents. Whatever Lifeboat does to a vSphere it writes down
// first, and takes off the list when it was taken back or has become part of a
// session. So, whenever a process dies:
//
//	begin (durable) → effect → amend (durable) → … → effect undone → done
//	       ▲ no effect yet     ▲ an effect found by its name           ▲ undone twice
//
// An intent in the journal means "the effect may be there", never "it is": who
// reconciles looks for it by the names in Object, which nobody else gives, and
// finds it, or nothing. Undoing must therefore be harmless when there is nothing
// to undo; that is the one rule for every handler (reconcile.go).
//
// An intent belongs to the process that holds the lock named by Process (see
// processMark). When that is gone, whoever wants to act on the intent adopts it
// first, in one transaction, so that of two that reconcile at once one does.

var bucketIntents = []byte("intents")

// IntentKind says what was meant to be done.
type IntentKind string

// The kinds. Each has a handler in reconcile.go.
const (
	// IntentSnapshot: a snapshot of a VM. Object: name, and once known ref.
	IntentSnapshot IntentKind = "snapshot"
	// IntentMount: a datastore on a host. Object: name, host.
	IntentMount IntentKind = "mount"
	// IntentRegister: a VM of ours. Object: name, path, and once known ref.
	IntentRegister IntentKind = "register"
	// IntentAttach: a disk given to somebody's VM. Object: file, and once known key.
	IntentAttach IntentKind = "attach"
	// IntentRelocate: a VM of ours that moves away. Object: ref.
	IntentRelocate IntentKind = "relocate"
)

// Intent is one effect on the outside that may have been made.
type Intent struct {
	// ID orders intents as they were begun: 16 hexadecimal digits.
	ID   string     `json:"id"`
	Kind IntentKind `json:"kind"`
	// Job is what it is done for (an ID of a backup), Session the recovery.
	Job     string `json:"job,omitempty"`
	Session string `json:"session,omitempty"`
	// VCenter is the instanceUuid of where it is done.
	VCenter string `json:"vcenter"`
	// VM is whose object it is; zero where it is none's.
	VM vsphere.Identity `json:"vm,omitzero"`
	// Object holds the names by which it is found again.
	Object map[string]string `json:"object,omitempty"`
	Time   time.Time         `json:"time"`
	// Process is whose intent it is; see processMark.
	Process string `json:"process"`

	state *State
}

// abandoned reports whether nobody works on the intent any more.
func (in Intent) abandoned() bool { return in.state == nil || !in.state.processAlive(in.Process) }

// begin writes down what is about to be done and returns it with its ID. It is
// durable when begin returns; call it before the effect.
func (s *State) begin(in Intent) (Intent, error) { return s.beginUnless(in, nil) }

// beginUnless is begin, unless refuse, asked in the same transaction for every
// intent that some process works on, returns an error.
func (s *State) beginUnless(in Intent, refuse func(other Intent) error) (Intent, error) {
	process, err := s.processName()
	if err != nil {
		return in, err
	}
	in.Process, in.Time, in.Object, in.state = process, time.Now().UTC(), maps.Clone(in.Object), s
	err = s.updateIntents(func(b *bbolt.Bucket) error {
		if err := s.checkOthers(b, refuse); err != nil {
			return err
		}
		seq, err := b.NextSequence()
		if err != nil {
			return err
		}
		in.ID = fmt.Sprintf("%016x", seq)
		return putIntent(b, in)
	})
	if err != nil {
		return in, fmt.Errorf("journal: write down the intent before anything is done (%s): %w", in.Kind, err)
	}
	return in, nil
}

func (s *State) checkOthers(b *bbolt.Bucket, refuse func(Intent) error) error {
	if refuse == nil {
		return nil
	}
	return b.ForEach(func(k, v []byte) error {
		other, err := decodeIntent(k, v)
		if err != nil {
			return nil //nolint:nilerr // intents names it
		}
		if other.state = s; other.abandoned() {
			return nil
		}
		return refuse(other)
	})
}

// amend adds names to an intent's Object, or replaces them: what was learned
// while the effect was made.
func (s *State) amend(id string, object map[string]string) error {
	err := s.updateIntents(func(b *bbolt.Bucket) error {
		in, err := getIntent(b, id)
		if err != nil {
			return err
		}
		if in.Object == nil {
			in.Object = map[string]string{}
		}
		maps.Copy(in.Object, object)
		return putIntent(b, in)
	})
	if err != nil {
		return fmt.Errorf("journal: intent %s: %w", id, err)
	}
	return nil
}

// done takes an intent off the list: its effect was taken back, or is now in the
// session's record. An intent that is not there is no error.
func (s *State) done(id string) error {
	key, err := intentKey(id)
	if err == nil {
		err = s.updateIntents(func(b *bbolt.Bucket) error { return b.Delete(key) })
	}
	if err != nil {
		return fmt.Errorf("journal: intent %s: %w", id, err)
	}
	return nil
}

// adopt makes an abandoned intent this process's. ErrBusy: its process lives, or
// another has adopted it; ErrNotFound: it is done.
func (s *State) adopt(id string) (Intent, error) {
	process, err := s.processName()
	if err != nil {
		return Intent{}, err
	}
	var in Intent
	err = s.updateIntents(func(b *bbolt.Bucket) error {
		if in, err = getIntent(b, id); err != nil {
			return err
		}
		in.state = s
		if in.Process != process && !in.abandoned() {
			return ErrBusy
		}
		in.Process = process
		return putIntent(b, in)
	})
	if err != nil {
		return Intent{}, fmt.Errorf("journal: intent %s: %w", id, err)
	}
	return in, nil
}

// release gives an intent up without its being done: whoever reconciles next
// takes it, in this process too.
func (s *State) release(id string) error {
	err := s.updateIntents(func(b *bbolt.Bucket) error {
		in, err := getIntent(b, id)
		if err != nil {
			return err
		}
		in.Process = ""
		return putIntent(b, in)
	})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("journal: intent %s: %w", id, err)
	}
	return nil
}

// intents returns all that are in the journal, in the order in which they were
// begun. What cannot be read is named in the error, beside all that can.
func (s *State) intents() ([]Intent, error) {
	var (
		all      []Intent
		problems []error
	)
	err := s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketIntents)
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, v []byte) error {
			in, err := decodeIntent(k, v)
			if err != nil {
				problems = append(problems, err)
				return nil
			}
			in.state = s
			all = append(all, in)
			return nil
		})
	})
	if err := errors.Join(append(problems, err)...); err != nil {
		return all, fmt.Errorf("journal: %w; look on the vSphere for objects called lifeboat-…", err)
	}
	return all, nil
}

func (s *State) updateIntents(fn func(*bbolt.Bucket) error) error {
	return s.update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucketIntents)
		if err != nil {
			return err
		}
		return fn(b)
	})
}

func intentKey(id string) ([]byte, error) {
	var seq uint64
	if n, err := fmt.Sscanf(id, "%016x", &seq); n != 1 || err != nil || len(id) != 16 {
		return nil, fmt.Errorf("%w: %.40q is not the ID of an intent", ErrNotFound, id)
	}
	return binary.BigEndian.AppendUint64(nil, seq), nil
}

func putIntent(b *bbolt.Bucket, in Intent) error {
	key, err := intentKey(in.ID)
	if err != nil {
		return err
	}
	data, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return b.Put(key, data)
}

func getIntent(b *bbolt.Bucket, id string) (Intent, error) {
	key, err := intentKey(id)
	if err != nil {
		return Intent{}, err
	}
	data := b.Get(key)
	if data == nil {
		return Intent{}, fmt.Errorf("it is done: %w", ErrNotFound)
	}
	return decodeIntent(key, data)
}

func decodeIntent(key, data []byte) (Intent, error) {
	var in Intent
	if err := json.Unmarshal(data, &in); err != nil {
		return in, fmt.Errorf("intent %x: its record is damaged: %w", key, err)
	}
	if want := fmt.Sprintf("%x", key); in.ID != want {
		return in, fmt.Errorf("intent %s: its record is damaged: it says that it is %.40q", want, in.ID)
	}
	return in, nil
}

// applianceID is 16 hexadecimal digits that tell this appliance from others, for
// as long as it has its state directory. What it makes on a vSphere carries it.
func (s *State) applianceID() (string, error) {
	id, err := s.identity()
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%016x", id.fsid), nil
}
