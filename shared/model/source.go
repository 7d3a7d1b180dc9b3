package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/millrace-dev/millrace/shared/lake"
)

// Folder is a bundle in a folder of this machine.
type Folder string

func (d Folder) String() string { return "file://" + string(d) }

// ReadFile reads a file of the folder. It may be a link, but not to outside.
func (d Folder) ReadFile(_ context.Context, name string, limit int64) ([]byte, error) {
	root, err := os.OpenRoot(string(d))
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return ReadAll(f, name, limit)
}

// Objects is a bundle in an object store.
type Objects struct {
	Store  *lake.Store
	Bucket string
	Prefix string // without a slash at its end
}

func (o Objects) String() string { return "s3://" + o.Bucket + "/" + o.Prefix }

// ReadFile reads the object <prefix>/<name>.
func (o Objects) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	key := name
	if o.Prefix != "" {
		key = o.Prefix + "/" + name
	}
	data, _, err := o.Store.Read(ctx, o.Bucket, key, limit)
	if errors.Is(err, lake.ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return data, err
}

// ReadAll reads a file of at most limit bytes.
func ReadAll(r io.Reader, name string, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading %s: more than the allowed %d bytes", name, limit)
	}
	return data, nil
}
