// Package registry is a client of a model registry, an MLflow server, by its REST
// API. It knows registered models, their versions, aliases and tags, and where the
// artifacts of a version are: behind the server, in an object store, or in a folder.
//
// It is not a client for tracking: runs, parameters and metrics are the trainer's.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/millrace-dev/millrace/shared/lake"
	"github.com/millrace-dev/millrace/shared/model"
)

// Config says where the registry is.
type Config struct {
	// URL is the server's address, with the path that it is served under, if any.
	// User and password in it are sent.
	URL string
	// Store reads artifacts that are in an object store. Without it only those that
	// the server passes on, or that are in a folder of this machine, can be read.
	Store *lake.Store
	// Timeout bounds one request, 10 s by default; that of an artifact not.
	Timeout time.Duration
}

// Failures that callers tell apart.
var (
	// ErrNotFound is returned for a model, version, alias or artifact that is not
	// there.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned for a model that is there already.
	ErrExists = errors.New("exists already")
)

// Client is a client of one registry. It is safe for concurrent use.
//
// A method blocks until the server has answered, once: callers that poll or are
// called again need no other tries. Errors name the model and what was tried.
type Client struct {
	base    *url.URL
	store   *lake.Store
	timeout time.Duration
	http    *http.Client
}

// Connect checks the configuration and makes a client. It sends nothing.
func (c Config) Connect() (*Client, error) {
	u, err := url.Parse(c.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the registry's address must be like http://host:port")
	}
	if c.Timeout == 0 {
		c.Timeout = 10 * time.Second
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:forcetypeassert // it is one
	transport.ResponseHeaderTimeout = 30 * time.Second
	return &Client{base: u, store: c.Store, timeout: c.Timeout, http: &http.Client{Transport: transport}}, nil
}

// Version is a version of a registered model.
type Version struct {
	Name    string
	Version string // a number as text, as the server has it
	RunID   string
	// Source is where its artifacts were said to be when it was made.
	Source string
	// Status is READY when the version can be used.
	Status      string
	Description string
	CreatedAt   time.Time
	Tags        map[string]string
	// Aliases point to the version. They are known of one that was found by itself,
	// not of one in a list; see Client.Aliases.
	Aliases []string
}

// wireVersion is a version as the server sends it.
type wireVersion struct {
	Name        string   `json:"name"`
	Version     string   `json:"version"`
	RunID       string   `json:"run_id"`
	Source      string   `json:"source"`
	Status      string   `json:"status"`
	Description string   `json:"description"`
	CreatedAt   int64    `json:"creation_timestamp"`
	Tags        []tag    `json:"tags"`
	Aliases     []string `json:"aliases"`
}

type tag struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

func (w *wireVersion) version() Version {
	v := Version{Name: w.Name, Version: w.Version, RunID: w.RunID, Source: w.Source, Status: w.Status,
		Description: w.Description, CreatedAt: time.UnixMilli(w.CreatedAt).UTC(), Aliases: w.Aliases}
	if len(w.Tags) > 0 {
		v.Tags = make(map[string]string, len(w.Tags))
		for _, t := range w.Tags {
			v.Tags[t.Key] = t.Value
		}
	}
	return v
}

func tags(m map[string]string) []tag {
	list := make([]tag, 0, len(m))
	for k, v := range m {
		list = append(list, tag{k, v})
	}
	return list
}

// CreateModel registers a model; ErrExists when it is registered already.
func (c *Client) CreateModel(ctx context.Context, name, description string) error {
	err := c.call(ctx, http.MethodPost, "registered-models/create", nil, map[string]any{"name": name, "description": description}, nil)
	return wrap(err, "registering model %s", name)
}

// CreateVersion makes the next version of a model of a run's artifacts.
func (c *Client) CreateVersion(ctx context.Context, v Version) (Version, error) {
	var answer struct {
		Version wireVersion `json:"model_version"`
	}
	err := c.call(ctx, http.MethodPost, "model-versions/create", nil, map[string]any{
		"name": v.Name, "source": v.Source, "run_id": v.RunID, "description": v.Description, "tags": tags(v.Tags)}, &answer)
	return answer.Version.version(), wrap(err, "making a version of model %s", v.Name)
}

// ByAlias finds the version that an alias of a model points to.
func (c *Client) ByAlias(ctx context.Context, name, alias string) (Version, error) {
	return c.one(ctx, "registered-models/alias", url.Values{"name": {name}, "alias": {alias}}, "looking for model %s, alias %s", name, alias)
}

// ByVersion finds a version by its number.
func (c *Client) ByVersion(ctx context.Context, name, version string) (Version, error) {
	return c.one(ctx, "model-versions/get", url.Values{"name": {name}, "version": {version}}, "looking for model %s, version %s", name, version)
}

func (c *Client) one(ctx context.Context, at string, q url.Values, format string, args ...any) (Version, error) {
	var answer struct {
		Version wireVersion `json:"model_version"`
	}
	if err := c.call(ctx, http.MethodGet, at, q, nil, &answer); err != nil {
		return Version{}, wrap(err, format, args...)
	}
	return answer.Version.version(), nil
}

// Versions lists the versions of a model, the latest first. Of a model that is not
// there the list is empty.
func (c *Client) Versions(ctx context.Context, name string) ([]Version, error) {
	var all []Version
	if strings.ContainsAny(name, `'"\`) {
		return nil, fmt.Errorf("listing versions of model %q: the name has a quote", name)
	}
	q := url.Values{"filter": {"name='" + name + "'"}, "max_results": {"200"}, "order_by": {"version_number DESC"}}
	for {
		var page struct {
			Versions []wireVersion `json:"model_versions"`
			Next     string        `json:"next_page_token"`
		}
		if err := c.call(ctx, http.MethodGet, "model-versions/search", q, nil, &page); err != nil {
			return nil, wrap(err, "listing versions of model %s", name)
		}
		for i := range page.Versions {
			all = append(all, page.Versions[i].version())
		}
		if page.Next == "" {
			return all, nil
		}
		q.Set("page_token", page.Next)
	}
}

// Aliases gives all aliases of a model with the version that each points to.
func (c *Client) Aliases(ctx context.Context, name string) (map[string]string, error) {
	var answer struct {
		Model struct {
			Aliases []struct {
				Alias   string `json:"alias"`
				Version string `json:"version"`
			} `json:"aliases"`
		} `json:"registered_model"`
	}
	if err := c.call(ctx, http.MethodGet, "registered-models/get", url.Values{"name": {name}}, nil, &answer); err != nil {
		return nil, wrap(err, "looking for model %s", name)
	}
	aliases := make(map[string]string, len(answer.Model.Aliases))
	for _, a := range answer.Model.Aliases {
		aliases[a.Alias] = a.Version
	}
	return aliases, nil
}

// SetAlias points an alias of a model to a version, in one step, wherever it pointed
// before.
func (c *Client) SetAlias(ctx context.Context, name, alias, version string) error {
	err := c.call(ctx, http.MethodPost, "registered-models/alias", nil, map[string]any{"name": name, "alias": alias, "version": version}, nil)
	return wrap(err, "pointing alias %s of model %s to version %s", alias, name, version)
}

// DeleteAlias removes an alias. One that is not there is no error.
func (c *Client) DeleteAlias(ctx context.Context, name, alias string) error {
	err := c.call(ctx, http.MethodDelete, "registered-models/alias", nil, map[string]any{"name": name, "alias": alias}, nil)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return wrap(err, "removing alias %s of model %s", alias, name)
}

// SetTag sets a tag of a version.
func (c *Client) SetTag(ctx context.Context, name, version, key, value string) error {
	err := c.call(ctx, http.MethodPost, "model-versions/set-tag", nil,
		map[string]any{"name": name, "version": version, "key": key, "value": value}, nil)
	return wrap(err, "setting tag %s of model %s, version %s", key, name, version)
}

// Bundle tells where the bundle of a version is: its artifacts, as they are.
func (c *Client) Bundle(ctx context.Context, v Version) (model.Source, error) {
	var answer struct {
		URI string `json:"artifact_uri"`
	}
	q := url.Values{"name": {v.Name}, "version": {v.Version}}
	if err := c.call(ctx, http.MethodGet, "model-versions/get-download-uri", q, nil, &answer); err != nil {
		return nil, wrap(err, "looking for the artifacts of model %s, version %s", v.Name, v.Version)
	}
	source, err := c.source(ctx, answer.URI)
	return source, wrap(err, "looking for the artifacts of model %s, version %s", v.Name, v.Version)
}

func (c *Client) source(ctx context.Context, uri string) (model.Source, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return nil, fmt.Errorf("the server says they are at %q: %w", uri, err)
	}
	switch u.Scheme {
	case "mlflow-artifacts":
		return artifacts{c, strings.Trim(u.Path, "/")}, nil
	case "s3":
		if c.store == nil {
			return nil, fmt.Errorf("they are at %s, and no object store is configured (S3_ENDPOINT)", uri)
		}
		return model.Objects{Store: c.store, Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}, nil
	case "file", "":
		return model.Folder(u.Path), nil
	case "runs":
		// runs:/<id>/<path> is relative to the run's artifacts.
		id, rest, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
		var run struct {
			Run struct {
				Info struct {
					URI string `json:"artifact_uri"`
				} `json:"info"`
			} `json:"run"`
		}
		if err := c.call(ctx, http.MethodGet, "runs/get", url.Values{"run_id": {id}}, nil, &run); err != nil {
			return nil, fmt.Errorf("looking for run %s: %w", id, err)
		}
		if strings.HasPrefix(run.Run.Info.URI, "runs:") {
			return nil, fmt.Errorf("the artifacts of run %s are at %s", id, run.Run.Info.URI)
		}
		return c.source(ctx, strings.TrimSuffix(run.Run.Info.URI, "/")+"/"+rest)
	}
	return nil, fmt.Errorf("they are at %s, which cannot be read", uri)
}

// artifacts are files that the server passes on.
type artifacts struct {
	client *Client
	path   string
}

func (a artifacts) String() string { return "mlflow-artifacts:/" + a.path }

// ReadFile downloads an artifact. Of one that is not there a server whose artifacts
// are in an object store says only that it failed.
func (a artifacts) ReadFile(ctx context.Context, name string, limit int64) ([]byte, error) {
	u := a.client.base.JoinPath("api/2.0/mlflow-artifacts/artifacts", a.path, name)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fmt.Errorf("asking for %s: %w", path.Join(a.path, name), err)
	}
	response, err := a.client.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("downloading %s: %w", path.Join(a.path, name), redact(err))
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		err := answered(response)
		if errors.Is(err, ErrNotFound) {
			err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		}
		return nil, fmt.Errorf("downloading %s: %w", path.Join(a.path, name), err)
	}
	return model.ReadAll(response.Body, name, limit)
}

// maxAnswer bounds an answer of the API.
const maxAnswer = 16 << 20

// call makes one request of the API. query may be nil, body and answer too.
func (c *Client) call(ctx context.Context, method, at string, query url.Values, body, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	u := c.base.JoinPath("api/2.0/mlflow", at)
	u.RawQuery = query.Encode()
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(data)
	}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), sent)
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(r)
	if err != nil {
		return redact(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return answered(response)
	}
	data, err := model.ReadAll(response.Body, "the answer", maxAnswer)
	if err != nil || answer == nil {
		return err
	}
	if err := json.Unmarshal(data, answer); err != nil {
		return fmt.Errorf("reading the answer of %s: %w", at, err)
	}
	return nil
}

// answered is the error of a response that is none of success.
func answered(r *http.Response) error {
	data, _ := io.ReadAll(io.LimitReader(r.Body, 4096)) // what can be read of it is enough
	var e struct {
		Code    string `json:"error_code"`
		Message string `json:"message"`
	}
	if json.Unmarshal(data, &e) != nil || e.Message == "" {
		e.Message = strings.Join(strings.Fields(string(data)), " ")
	}
	err := fmt.Errorf("the registry answered %d %s: %.300s", r.StatusCode, e.Code, e.Message)
	switch {
	case r.StatusCode == http.StatusNotFound, e.Code == "RESOURCE_DOES_NOT_EXIST",
		e.Code == "INVALID_PARAMETER_VALUE" && strings.Contains(e.Message, "alias") && strings.Contains(e.Message, "not found"):
		return fmt.Errorf("%w: %w", ErrNotFound, err)
	case e.Code == "RESOURCE_ALREADY_EXISTS":
		return fmt.Errorf("%w: %w", ErrExists, err)
	}
	return err
}

// redact leaves the address out of an error, which may hold a password.
func redact(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return fmt.Errorf("reaching the registry: %w", e.Err)
	}
	return err
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
