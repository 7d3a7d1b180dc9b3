package embeds3

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// intent is a change that is being made. It is on disk before the change and until
// its notification is, so that a change which was made just before a crash is told of
// too.
type intent struct {
	Event  string `json:"event"`
	Bucket string `json:"bucket"`
	Key    string `json:"key"`
}

// intend notes a change; done is called when it was told of, or was not made. A note
// that cannot be written only loses what it is for.
func (n *notifier) intend(event string, bucket, key *string) (done func()) {
	if len(n.targets) == 0 {
		return func() {}
	}
	body, err := json.Marshal(intent{event, str(bucket), str(key)})
	file := filepath.Join(n.intents, fmt.Sprintf("%020d", n.sequence()))
	if err == nil {
		err = os.WriteFile(file+".tmp", body, 0o644)
	}
	if err == nil {
		err = os.Rename(file+".tmp", file+".json")
	}
	if err != nil {
		slog.Warn("a change that is being made cannot be noted", "bucket", str(bucket), "key", str(key), "error", err)
		return func() {}
	}
	return func() {
		if err := os.Remove(file + ".json"); err != nil {
			slog.Warn("a note of a change cannot be removed; it will be told of again", "file", file, "error", err)
		}
	}
}

// recover tells of the changes that were being made when an earlier server died,
// those that were made. Some may have been told of already.
func (b notifying) recover(ctx context.Context) error {
	files, err := filepath.Glob(filepath.Join(b.intents, "*.json"))
	if err != nil {
		return err
	}
	slices.Sort(files)
	for _, file := range files {
		body, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading the note of a change: %w", err)
		}
		var i intent
		if err := json.Unmarshal(body, &i); err != nil {
			return fmt.Errorf("reading the note of a change, %s: %w", file, err)
		}
		_, err = b.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &i.Bucket, Key: &i.Key})
		if exists := err == nil; exists == strings.HasPrefix(i.Event, "s3:ObjectCreated:") {
			b.send(i.Event, i.Bucket, b.head(ctx, &i.Bucket, &i.Key))
		}
		if err := os.Remove(file); err != nil {
			return fmt.Errorf("removing the note of a change: %w", err)
		}
	}
	return nil
}
