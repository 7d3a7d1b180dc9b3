package lake

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// Config says where the object store is and who we are to it.
type Config struct {
	// Endpoint is the store's URL, scheme and host only; https is used as asked.
	Endpoint string `envconfig:"S3_ENDPOINT" required:"true"`
	// Region is part of the signature; stores other than Amazon's take any.
	Region string `envconfig:"S3_REGION" default:"us-east-1"`
	// AccessKey and SecretKey sign the requests.
	AccessKey string `envconfig:"S3_ACCESS_KEY" required:"true"`
	SecretKey string `envconfig:"S3_SECRET_KEY" required:"true"`
}

// Failures that callers tell apart.
var (
	// ErrNotFound is returned for an object or bucket that is not there.
	ErrNotFound = errors.New("not found")
	// ErrChanged is returned by a conditional Put when the object is not in the
	// state that the condition names. Nothing was written.
	ErrChanged = errors.New("object has changed")
)

// Object is what the store knows about an object.
type Object struct {
	Key      string
	Size     int64
	ETag     string
	Modified time.Time
	// Metadata is the user metadata with lower-case names, from Stat only.
	Metadata map[string]string
}

// Store is a client of one object store. It is safe for concurrent use.
//
// Every method blocks until the store has answered or ctx is done; a request that
// got no answer or a 5xx is tried three times. Errors name bucket and key.
type Store struct {
	s3       minio.Core
	endpoint string
}

// Connect checks the configuration and makes a client. It sends nothing.
func (c Config) Connect() (*Store, error) {
	u, err := url.Parse(c.Endpoint)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, fmt.Errorf("S3_ENDPOINT %q: want http://host:port or https://host", c.Endpoint)
	}
	if (u.Path != "" && u.Path != "/") || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("S3_ENDPOINT %q: want scheme and host only", u.Redacted())
	}
	if c.AccessKey == "" || c.SecretKey == "" {
		return nil, errors.New("S3_ACCESS_KEY and S3_SECRET_KEY: must both be set")
	}
	client, err := minio.New(u.Host, &minio.Options{
		Creds:  credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""),
		Secure: u.Scheme == "https",
		Region: c.Region,
		// Buckets as hosts would need wildcard DNS in the cluster.
		BucketLookup: minio.BucketLookupPath,
		// Trailing checksums are not understood everywhere; Put sends a header.
		TrailingHeaders: false,
		MaxRetries:      3,
		Transport: &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 3 * time.Second, KeepAlive: 15 * time.Second}).DialContext,
			MaxIdleConnsPerHost:   64,
			IdleConnTimeout:       90 * time.Second,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: 30 * time.Second,
			ExpectContinueTimeout: time.Second,
			// Objects are read as they are stored.
			DisableCompression: true,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("S3_ENDPOINT %q: %w", c.Endpoint, err)
	}
	return &Store{s3: minio.Core{Client: client}, endpoint: c.Endpoint}, nil
}

// Reach returns nil when the store answers and accepts our keys for the bucket,
// whether the bucket exists or not.
func (s *Store) Reach(ctx context.Context, bucket string) error {
	if _, err := s.s3.BucketExists(ctx, bucket); err != nil {
		return s.fail("reaching bucket", bucket, "", err)
	}
	return nil
}

// EnsureBucket creates the bucket when it is missing and tells whether it did.
func (s *Store) EnsureBucket(ctx context.Context, bucket string) (created bool, err error) {
	exists, err := s.s3.BucketExists(ctx, bucket)
	if err != nil {
		return false, s.fail("looking for bucket", bucket, "", err)
	}
	if exists {
		return false, nil
	}
	err = s.s3.MakeBucket(ctx, bucket, minio.MakeBucketOptions{})
	switch minio.ToErrorResponse(err).Code {
	case minio.BucketAlreadyOwnedByYou, minio.BucketAlreadyExists:
		return false, nil // another process was faster
	}
	if err != nil {
		return false, s.fail("creating bucket", bucket, "", err)
	}
	return true, nil
}

// Condition makes a Put depend on the object's present state. The zero value
// writes in any case.
type Condition struct {
	// Absent asks that there be no object of this key.
	Absent bool
	// ETag asks that the object be the one with this ETag.
	ETag string
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Put writes an object in one request and returns when the store has it. The store
// checks the bytes against a CRC-32C; the object is there whole or not at all. The
// data is not kept after Put returns.
//
// When the condition does not hold, the error is ErrChanged. Because a request
// whose answer was lost is sent again, that can also mean that this very Put has
// succeeded: callers compare what is there. Stores that ignore conditions exist.
func (s *Store) Put(ctx context.Context, bucket, key string, data []byte, contentType string, metadata map[string]string, cond Condition) (Object, error) {
	var sum [4]byte
	binary.BigEndian.PutUint32(sum[:], crc32.Checksum(data, castagnoli))
	opts := minio.PutObjectOptions{
		ContentType:  contentType,
		UserMetadata: map[string]string{"x-amz-checksum-crc32c": base64.StdEncoding.EncodeToString(sum[:])},
		// The signed checksum header covers the payload already.
		DisableContentSha256: true,
	}
	for k, v := range metadata {
		opts.UserMetadata[k] = v
	}
	if cond.Absent {
		opts.SetMatchETagExcept("*")
	} else if cond.ETag != "" {
		opts.SetMatchETag(cond.ETag)
	}
	info, err := s.s3.PutObject(ctx, bucket, key, bytes.NewReader(data), int64(len(data)), "", "", opts)
	if err != nil {
		switch r := minio.ToErrorResponse(err); {
		case r.StatusCode == http.StatusPreconditionFailed,
			// Two conditional writes at the same instant.
			r.StatusCode == http.StatusConflict && r.Code == "ConditionalRequestConflict",
			// A condition on an object that was deleted meanwhile.
			r.Code == minio.NoSuchKey && cond.ETag != "":
			err = fmt.Errorf("%w (%s)", ErrChanged, r.Code)
		}
		return Object{}, s.fail("writing", bucket, key, err)
	}
	return Object{Key: key, Size: int64(len(data)), ETag: info.ETag, Modified: info.LastModified}, nil
}

// Stat tells about an object without reading it; ErrNotFound when there is none.
func (s *Store) Stat(ctx context.Context, bucket, key string) (Object, error) {
	info, err := s.s3.StatObject(ctx, bucket, key, minio.StatObjectOptions{})
	if err != nil {
		return Object{}, s.fail("looking for", bucket, key, err)
	}
	o := objectOf(info)
	o.Metadata = make(map[string]string, len(info.UserMetadata))
	for k, v := range info.UserMetadata {
		o.Metadata[strings.ToLower(k)] = v
	}
	return o, nil
}

// Open reads an object as a stream; ErrNotFound when there is none. The caller
// closes it.
func (s *Store) Open(ctx context.Context, bucket, key string) (io.ReadCloser, Object, error) {
	body, info, _, err := s.s3.GetObject(ctx, bucket, key, minio.GetObjectOptions{})
	if err != nil {
		return nil, Object{}, s.fail("reading", bucket, key, err)
	}
	return body, objectOf(info), nil
}

// Read reads a whole object of at most limit bytes; ErrNotFound when there is none.
func (s *Store) Read(ctx context.Context, bucket, key string, limit int64) ([]byte, Object, error) {
	body, o, err := s.Open(ctx, bucket, key)
	if err != nil {
		return nil, o, err
	}
	defer func() { _ = body.Close() }()
	o.Key = key
	if o.Size > limit {
		return nil, o, fmt.Errorf("reading %s/%s: %d bytes, more than the allowed %d", bucket, key, o.Size, limit)
	}
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, o, s.fail("reading", bucket, key, err)
	}
	return data, o, nil
}

// Delete removes an object. One that is not there is no error.
func (s *Store) Delete(ctx context.Context, bucket, key string) error {
	err := s.s3.RemoveObject(ctx, bucket, key, minio.RemoveObjectOptions{})
	if err != nil && minio.ToErrorResponse(err).Code != minio.NoSuchKey {
		return s.fail("deleting", bucket, key, err)
	}
	return nil
}

// List yields the objects whose keys begin with prefix and sort after the key
// after ("" for all), in the order of their keys' bytes. It asks for them in pages
// of a thousand as they are consumed. An error ends it; a missing bucket is
// ErrNotFound.
func (s *Store) List(ctx context.Context, bucket, prefix, after string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		opts := minio.ListObjectsOptions{Prefix: prefix, Recursive: true, StartAfter: after}
		for info := range s.s3.ListObjectsIter(ctx, bucket, opts) {
			if info.Err != nil {
				yield(Object{}, s.fail("listing", bucket, prefix, info.Err))
				return
			}
			if !yield(objectOf(info), nil) {
				return
			}
		}
		// A listing that was cut short must not look complete.
		if err := ctx.Err(); err != nil {
			yield(Object{}, s.fail("listing", bucket, prefix, err))
		}
	}
}

func objectOf(info minio.ObjectInfo) Object {
	return Object{Key: info.Key, Size: info.Size, ETag: info.ETag, Modified: info.LastModified}
}

// fail says what was tried on what, and where the store is when it did not answer.
func (s *Store) fail(doing, bucket, key string, err error) error {
	what := bucket
	if key != "" {
		what += "/" + key
	}
	switch r := minio.ToErrorResponse(err); {
	case errors.Is(err, ErrChanged):
		return fmt.Errorf("%s %s: %w", doing, what, err)
	case r.Code == minio.NoSuchKey || r.Code == minio.NoSuchBucket || r.StatusCode == http.StatusNotFound:
		return fmt.Errorf("%s %s: %w (%s)", doing, what, ErrNotFound, r.Code)
	case r.StatusCode != 0:
		return fmt.Errorf("%s %s: %s answered %d %s: %s", doing, what, s.endpoint, r.StatusCode, r.Code, r.Message)
	}
	return fmt.Errorf("%s %s at %s: %w", doing, what, s.endpoint, err)
}
