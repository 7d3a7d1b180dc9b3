package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/kelseyhightower/envconfig"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/model"
	"github.com/millrace-dev/millrace/shared/registry"
)

// origin is where the version to serve is found.
type origin interface {
	// find tells which version is to be served now.
	find(ctx context.Context) (found, error)
	String() string
}

// found is a version that is to be served.
type found struct {
	// id changes with the version.
	id string
	// version is the registry's number, "" if there is none.
	version string
	// source finds the bundle, which is asked for when the version is new.
	source func(context.Context) (model.Source, error)
	// digest is the bundle's, "" if it is not known yet.
	digest string
}

// place is one bundle that may be replaced by another in its place.
type place struct{ model.Source }

func (p place) find(ctx context.Context) (found, error) {
	_, digest, err := model.ReadManifest(ctx, p.Source)
	source := func(context.Context) (model.Source, error) { return p.Source, nil }
	return found{id: digest, source: source, digest: digest}, err
}

// newPlace reads a URI of a bundle. name is of the variable that it came from.
func newPlace(name, uri string) (origin, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	switch u.Scheme {
	case "kodata":
		// A folder that is in the image, beside the program.
		data := os.Getenv("KO_DATA_PATH")
		if data == "" {
			return nil, fmt.Errorf("%s=%q: KO_DATA_PATH, the folder it is in, is not set", name, uri)
		}
		if u.Host != "" || !filepath.IsLocal(strings.TrimPrefix(u.Path, "/")) {
			return nil, fmt.Errorf("%s=%q: want kodata:/// and a folder of %s", name, uri, data)
		}
		return place{model.Folder(filepath.Join(data, u.Path))}, nil
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return nil, fmt.Errorf("%s=%q: want file:// and an absolute path", name, uri)
		}
		return place{model.Folder(filepath.Clean(u.Path))}, nil
	case "s3":
		if u.Host == "" {
			return nil, fmt.Errorf("%s=%q: want s3://bucket/prefix", name, uri)
		}
		var c lake.Config
		if err := envconfig.Process("", &c); err != nil {
			return nil, fmt.Errorf("reading the environment for %s: %w", name, err)
		}
		store, err := c.Connect()
		if err != nil {
			return nil, err
		}
		return place{model.Objects{Store: store, Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}}, nil
	}
	return nil, fmt.Errorf("%s=%q: want file:///folder, s3://bucket/prefix or kodata:///folder", name, uri)
}

// alias is a version of a registered model: the one that an alias points to.
type alias struct {
	registry    *registry.Client
	model, name string
}

func (a alias) String() string { return a.model + "@" + a.name }

func (a alias) find(ctx context.Context) (found, error) {
	v, err := a.registry.ByAlias(ctx, a.model, a.name)
	if err != nil {
		return found{}, err
	}
	source := func(ctx context.Context) (model.Source, error) { return a.registry.Bundle(ctx, v) }
	// A version that was deleted and made again has another run.
	return found{id: v.Version + " of run " + v.RunID, version: v.Version, source: source}, nil
}

// newOrigin makes the origin of a role: a URI that came from a variable, or an alias.
func newOrigin(c *Config, variable, uri, name string) (origin, error) {
	if uri != "" {
		return newPlace(variable, uri)
	}
	rc := registry.Config{URL: c.TrackingURI}
	if os.Getenv("S3_ENDPOINT") != "" {
		var s3 lake.Config
		if err := envconfig.Process("", &s3); err != nil {
			return nil, fmt.Errorf("reading the environment: %w", err)
		}
		store, err := s3.Connect()
		if err != nil {
			return nil, err
		}
		rc.Store = store
	}
	client, err := rc.Connect()
	if err != nil {
		return nil, fmt.Errorf("MLFLOW_TRACKING_URI: %w", err)
	}
	return alias{client, c.Name, name}, nil
}
