package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"go.yaml.in/yaml/v3"
)

// Config is the configuration file (YAML). Flags and environment variables win
// over it.
type Config struct {
	// Repo is the repository's URL.
	Repo string `yaml:"repo"`
	// State is the state directory.
	State string `yaml:"state"`
	// PasswordFile holds the repository's password in its first line.
	PasswordFile string `yaml:"password_file"`
	// CacheMiB bounds the cache of decoded blocks, in MiB; 0 is the default.
	CacheMiB int64 `yaml:"cache_mib"`
	// CacheDir and CacheSize are of the cache on local disk; see DiskCache. The
	// size is bytes with a unit, such as 20G, or off.
	CacheDir  string `yaml:"cache_dir"`
	CacheSize string `yaml:"cache_size"`
	// Publish are the defaults of `lifeboat publish`.
	Publish struct {
		Listen    string   `yaml:"listen"`
		NFSPort   *int     `yaml:"nfs_port"`
		MountPort *int     `yaml:"mount_port"`
		Portmap   string   `yaml:"portmap"`
		Allow     []string `yaml:"allow"`
	} `yaml:"publish"`
}

// maxConfig bounds a configuration file, in bytes.
const maxConfig = 1 << 20

// ReadConfig reads a configuration file. A key it does not know is an error:
// a misspelt setting must not be silently without effect.
func ReadConfig(name string) (*Config, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if len(data) > maxConfig {
		return nil, fmt.Errorf("configuration %s: larger than %d bytes", name, maxConfig)
	}
	cfg := new(Config)
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(cfg); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: configuration %s: %w", ErrUsage, name, err)
	}
	if cfg.CacheMiB < 0 || cfg.CacheMiB > 1<<20 {
		return nil, fmt.Errorf("%w: configuration %s: cache_mib %d: use 0 to %d", ErrUsage, name, cfg.CacheMiB, 1<<20)
	}
	return cfg, nil
}
