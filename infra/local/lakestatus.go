package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/millrace-dev/millrace/shared/lake"
)

// measureLake asks the lake how far it is and counts the objects in its buckets.
func (c *collector) measureLake(ctx context.Context) (LakeStatus, error) {
	var found LakeStatus
	port, ok := c.parts.ports["lake"]
	if !ok {
		return found, nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(port)+"/lake/status", nil)
	if err != nil {
		return found, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return found, fmt.Errorf("asking the lake: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return found, fmt.Errorf("asking the lake: %s", resp.Status)
	}
	var status struct {
		Topics []struct {
			Bucket     string `json:"bucket"`
			Partitions []struct {
				Committed *int64 `json:"committed"`
			} `json:"partitions"`
		} `json:"topics"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&status); err != nil {
		return found, fmt.Errorf("asking the lake: %w", err)
	}
	seen := map[string]bool{}
	for _, t := range status.Topics {
		for _, p := range t.Partitions {
			if p.Committed != nil {
				found.Records += *p.Committed
			}
		}
		if seen[t.Bucket] {
			continue
		}
		seen[t.Bucket] = true
		for o, err := range c.store.List(ctx, t.Bucket, lake.Root, "") {
			if errors.Is(err, lake.ErrNotFound) {
				break // nothing was written yet
			}
			if err != nil {
				return found, err
			}
			found.Objects++
			found.Bytes += o.Size
			if o.Modified.After(found.LastWrite) {
				found.LastWrite = o.Modified
			}
		}
	}
	return found, nil
}
