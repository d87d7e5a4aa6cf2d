package appliance

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// stateWait bounds how long one command waits for another's transaction on the
// state database. Transactions are a few milliseconds; a longer wait means that
// something is stuck, and a person wants to know.
const stateWait = 10 * time.Second

var (
	bucketSessions = []byte("sessions")
	bucketIdentity = []byte("identity")
	keyHandles     = []byte("handle-key")
	keyFSID        = []byte("fsid")
)

// State is the appliance's state directory:
//
//	lifeboat.db             sessions, the journal and this appliance's identity (bbolt)
//	processes/<random>      locked by a process that has intents in the journal
//	sessions/<name>/lock    held by the process that publishes the session
//	sessions/<name>/disk-*  one overlay per virtual disk
//	datastore/<name>/…      the session's folder as an ESXi host sees it
//
// The database is opened for each transaction and closed again, so that any
// number of commands share it: a running publish does not keep `session ls`
// waiting. Losing the directory loses the changes of unfinished recoveries and
// nothing else: no backup depends on it.
type State struct {
	dir  string
	mark processMark // this process's
	// pause is how long it waits before it tries something on a vSphere again, at
	// first; 0 means removePause.
	pause time.Duration
}

// OpenState opens the state directory, making it (mode 0700) if need be.
func OpenState(dir string) (*State, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("state directory %q: %w", dir, err)
	}
	for _, d := range []string{abs, filepath.Join(abs, "sessions"), filepath.Join(abs, "datastore")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w; name a writable one with --state or LIFEBOAT_STATE", err)
		}
	}
	s := &State{dir: abs}
	if err := s.update(createBuckets); err != nil {
		return nil, err
	}
	return s, nil
}

func createBuckets(tx *bbolt.Tx) error {
	for _, b := range [][]byte{bucketSessions, bucketIdentity} {
		if _, err := tx.CreateBucketIfNotExists(b); err != nil {
			return err
		}
	}
	return nil
}

// Datastore is the directory that the NFS server exports.
func (s *State) Datastore() string { return filepath.Join(s.dir, "datastore") }

func (s *State) sessionDir(name string) string { return filepath.Join(s.dir, "sessions", name) }

func (s *State) update(fn func(*bbolt.Tx) error) error { return s.with(fn, (*bbolt.DB).Update) }
func (s *State) view(fn func(*bbolt.Tx) error) error   { return s.with(fn, (*bbolt.DB).View) }

func (s *State) with(fn func(*bbolt.Tx) error, run func(*bbolt.DB, func(*bbolt.Tx) error) error) error {
	path := filepath.Join(s.dir, "lifeboat.db")
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{Timeout: stateWait})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("state database %s: another lifeboat process has held it for %s; see what it is doing, or end it", path, stateWait)
	}
	if err != nil {
		return fmt.Errorf("state database %s: %w; the state directory must be writable (--state, LIFEBOAT_STATE)", path, err)
	}
	err = run(db, fn)
	if cerr := db.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("state database %s: %w", path, cerr)
	}
	return err
}

// identity is what makes NFS file handles of this appliance its own.
type identity struct {
	handleKey [32]byte // authenticates handles: a client cannot forge one
	fsid      uint64   // fattr3.fsid; ESXi tells datastores apart by it
}

// identity returns the appliance's identity, making it at first use. It never
// changes afterwards: a running VM's handles must survive every restart.
func (s *State) identity() (identity, error) {
	var id identity
	err := s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketIdentity)
		key, fsid := b.Get(keyHandles), b.Get(keyFSID)
		if len(key) == len(id.handleKey) && len(fsid) == 8 {
			copy(id.handleKey[:], key)
			id.fsid = binary.BigEndian.Uint64(fsid)
			return nil
		}
		if key != nil || fsid != nil {
			return fmt.Errorf("the appliance's identity in %s is damaged; running VMs would lose their file handles: restore lifeboat.db from a copy, or discard all sessions and remove it", s.dir)
		}
		var fresh [40]byte
		if _, err := rand.Read(fresh[:]); err != nil {
			return err
		}
		copy(id.handleKey[:], fresh[:32])
		id.fsid = binary.BigEndian.Uint64(fresh[32:]) | 1 // never 0
		if err := b.Put(keyHandles, id.handleKey[:]); err != nil {
			return err
		}
		return b.Put(keyFSID, binary.BigEndian.AppendUint64(nil, id.fsid))
	})
	return id, err
}

func (s *State) putSession(rec *Session) error {
	data, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return s.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketSessions).Put([]byte(rec.Name), data) })
}

// updateSession changes a session's record in one transaction: the server and the
// commands that work on a session write different fields of it.
func (s *State) updateSession(name string, change func(*Session)) (*Session, error) {
	var rec *Session
	err := s.update(func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketSessions)
		data := b.Get([]byte(name))
		if data == nil {
			return fmt.Errorf("session %q: %w", name, ErrNotFound)
		}
		rec = new(Session)
		if err := decodeSession(name, data, rec); err != nil {
			return err
		}
		change(rec)
		data, err := json.Marshal(rec)
		if err != nil {
			return err
		}
		return b.Put([]byte(name), data)
	})
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (s *State) deleteSession(name string) error {
	return s.update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketSessions).Delete([]byte(name)) })
}

// session returns the record of a session, or an error matching ErrNotFound.
func (s *State) session(name string) (*Session, error) {
	var rec *Session
	err := s.view(func(tx *bbolt.Tx) error {
		data := tx.Bucket(bucketSessions).Get([]byte(name))
		if data == nil {
			return fmt.Errorf("session %q: %w; `lifeboat session ls` lists them", name, ErrNotFound)
		}
		rec = new(Session)
		return decodeSession(name, data, rec)
	})
	if err != nil {
		return nil, err
	}
	return rec, nil
}

// sessions returns all sessions by name.
func (s *State) sessions() ([]*Session, error) {
	var all []*Session
	err := s.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketSessions).ForEach(func(k, v []byte) error {
			rec := new(Session)
			all = append(all, rec)
			return decodeSession(string(k), v, rec)
		})
	})
	return all, err
}

func decodeSession(name string, data []byte, rec *Session) error {
	if err := json.Unmarshal(data, rec); err != nil {
		return fmt.Errorf("session %q: its record in the state database is damaged: %w", name, err)
	}
	return nil
}
