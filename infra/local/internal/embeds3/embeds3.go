// Package embeds3 runs an S3 server inside a Go program, on one port of the
// loopback interface, over a folder.
//
// It is versitygw's gateway with one thing added: it tells configured URLs of
// every object that is created or removed, in the shape of MinIO's webhook, so
// that what listens to a MinIO in a cluster listens to this one unchanged.
package embeds3

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
)

// HealthPath answers 200 without credentials when the server is up.
const HealthPath = "/healthz"

// Config says where the server listens, what it keeps and whom it tells.
type Config struct {
	Port int
	// Host is the address to listen on; the loopback interface when empty.
	Host      string
	DataDir   string // made when missing
	Region    string
	AccessKey string
	SecretKey string

	// NotifyURLs are told of every object created or removed; none by default.
	NotifyURLs []string
	// NotifyToken is sent to them as the Authorization header, word for word.
	NotifyToken string
}

// Run serves until ctx ends. It may be called once in a process, and changes the
// working directory.
func Run(ctx context.Context, cfg Config) error {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return fmt.Errorf("finding the data folder: %w", err)
	}
	objects, versions, attributes := filepath.Join(dir, "objects"), filepath.Join(dir, "versions"), filepath.Join(dir, "attributes")
	for _, d := range []string{objects, versions, attributes} {
		if err := os.MkdirAll(d, 0o750); err != nil {
			return fmt.Errorf("making the data folder: %w", err)
		}
	}
	opts := posix.PosixOpts{
		VersioningDir:       versions,
		CopyObjectThreshold: 5 << 30,
		Concurrency:         64,
	}
	// Objects' attributes live in extended attributes, or in files beside where
	// the file system has none.
	var store meta.MetadataStorer = meta.XattrMeta{}
	if err := (meta.XattrMeta{}).Test(objects); err != nil {
		side, err := meta.NewSideCar(attributes)
		if err != nil {
			return fmt.Errorf("opening the folder of attributes: %w", err)
		}
		store, opts.SideCarDir = side, attributes
	}
	gateway, err := posix.New(objects, store, opts)
	if err != nil {
		return fmt.Errorf("opening %s: %w", objects, err)
	}
	n, err := newNotifier(ctx, filepath.Join(dir, "notify"), cfg)
	if err != nil {
		return err
	}
	defer n.close()
	objectStore := notifying{Backend: gateway, notifier: n}
	if err := objectStore.recover(ctx); err != nil {
		return err
	}

	address := net.JoinHostPort(cfg.Host, strconv.Itoa(cfg.Port))
	if cfg.Host == "" {
		address = net.JoinHostPort("127.0.0.1", strconv.Itoa(cfg.Port))
	}
	fmt.Printf("s3 listens on %s, objects in %s\n", address, objects)
	err = embedgw.RunVersityGW(ctx, objectStore, &embedgw.Config{
		RootUserAccess: cfg.AccessKey,
		RootUserSecret: cfg.SecretKey,
		Region:         cfg.Region,
		Ports:          []string{address},
		MaxConnections: 4096,
		MaxRequests:    1024,
		// S3's own limit.
		MultipartMaxParts: 10_000,
		HealthPath:        HealthPath,
		KeepAlive:         true,
		Quiet:             true,
	})
	if err != nil {
		return fmt.Errorf("serving S3 on port %d: %w", cfg.Port, err)
	}
	return nil
}
