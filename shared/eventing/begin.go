package eventing

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// beginAtEnd commits the ends of the topics' partitions for the groups that have not
// begun, as Knative's control plane does when it makes a Trigger. From then on
// nothing is missed, also while nobody runs: a partition without an offset is read
// from its start, since it can only be one that was added later. All topics have to
// exist: for a group that has begun without an offset, a later call would take the
// records that it has not done yet for old ones.
//
// The ends are listed before the groups are looked at: of two engines that begin at
// the same moment, neither skips what came after the other was ready.
func beginAtEnd(ctx context.Context, admin *kadm.Client, topics []string, groups ...string) error {
	if len(groups) == 0 {
		return nil
	}
	ends, err := admin.ListEndOffsets(ctx, topics...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("listing the ends of %s: %w", strings.Join(topics, ", "), err)
	}
	for _, topic := range topics {
		if len(ends[topic]) == 0 {
			return fmt.Errorf("topic %s does not exist", topic)
		}
	}
	committed, err := fetchOffsets(ctx, admin, groups)
	if err != nil {
		return err
	}
	for _, group := range groups {
		offsets := kadm.Offsets{}
		for _, topic := range topics {
			if len(committed[group].Fetched[topic]) > 0 {
				continue
			}
			for _, end := range ends[topic] {
				offsets.AddOffset(end.Topic, end.Partition, end.Offset, -1)
			}
		}
		if len(offsets) == 0 {
			continue
		}
		members, err := groupMembers(ctx, admin, group)
		if err != nil {
			return err
		}
		if len(members) > 0 {
			continue // another engine has begun already
		}
		if err := admin.CommitAllOffsets(ctx, group, offsets); err != nil {
			return fmt.Errorf("committing where group %s begins: %w", group, err)
		}
	}
	return nil
}

// fetchOffsets are the offsets that the groups have committed.
func fetchOffsets(ctx context.Context, admin *kadm.Client, groups []string) (kadm.FetchOffsetsResponses, error) {
	committed := admin.FetchManyOffsets(ctx, groups...)
	for _, group := range groups {
		c, ok := committed[group]
		if !ok {
			return nil, fmt.Errorf("fetching the offsets of group %s: there was no answer", group)
		}
		// Some brokers answer so for a group that nobody has used yet.
		if c.Err != nil && !errors.Is(c.Err, kerr.GroupIDNotFound) {
			return nil, fmt.Errorf("fetching the offsets of group %s: %w", group, c.Err)
		}
		for _, partitions := range c.Fetched {
			for _, p := range partitions {
				if p.Err != nil {
					return nil, fmt.Errorf("fetching the offsets of group %s: topic %s, partition %d: %w", group, p.Topic, p.Partition, p.Err)
				}
			}
		}
	}
	return committed, nil
}

// groupMembers are those of the groups that have members.
func groupMembers(ctx context.Context, admin *kadm.Client, groups ...string) ([]string, error) {
	described, err := admin.DescribeGroups(ctx, groups...)
	if err != nil {
		return nil, fmt.Errorf("describing group %s: %w", strings.Join(groups, ", "), err)
	}
	var busy []string
	for _, g := range described {
		if len(g.Members) > 0 {
			busy = append(busy, g.Group)
		}
	}
	slices.Sort(busy)
	return busy, nil
}

// prepare has the Triggers begin. It fails while their groups have members: an engine
// that makes Triggers members of groups, as this one did once, runs or died a moment
// ago, and commits would be refused.
func (r *reader) prepare(ctx context.Context, admin *kadm.Client) error {
	busy, err := groupMembers(ctx, admin, r.groups()...)
	if err != nil {
		return err
	}
	if len(busy) > 0 {
		return fmt.Errorf("group %s has members, and cannot have any: another program reads as this Trigger, or one that was killed has not been missed yet", busy[0])
	}
	if err := beginAtEnd(ctx, admin, []string{r.topic}, r.groups()...); err != nil {
		return fmt.Errorf("preparing the Triggers of topic %s: %w", r.topic, err)
	}
	return nil
}

func (r *reader) groups() []string {
	groups := make([]string, len(r.triggers))
	for i, s := range r.triggers {
		groups[i] = s.group
	}
	return groups
}

// near is how many records the furthest Triggers of a partition wait for those behind
// them when an engine begins: reading them again costs them less than an own reader
// costs each of the others.
const near = 20_000

// assigned runs when the reader has got partitions, before they are read. It finds out
// where each Trigger goes on and has the reader begin there.
func (r *reader) assigned(ctx context.Context, added map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	<-r.ready
	if len(added[r.topic]) == 0 {
		return added, nil
	}
	positions, err := r.positions(ctx, added[r.topic])
	if err != nil {
		if ctx.Err() == nil {
			r.log.Warn("finding out where the Triggers go on failed, it is tried again", "group", r.group, "error", err)
		}
		return nil, err
	}
	for id, at := range positions {
		p := &sharedPartition{id: id, next: slices.Max(at)}
		for _, behind := range at {
			if behind >= slices.Max(at)-near {
				p.next = min(p.next, behind)
			}
		}
		for i, s := range r.triggers {
			p.lanes = append(p.lanes, newLane(r, s, p, at[i]))
		}
		r.mu.Lock()
		r.shared[id] = p
		r.mu.Unlock()
		for _, l := range p.lanes {
			go l.run()
			l.resume()
		}
		added[r.topic][id] = kgo.NewOffset().At(p.next)
	}
	return added, nil
}

// positions are, for each partition, the offsets at which the Triggers go on.
func (r *reader) positions(ctx context.Context, partitions map[int32]kgo.Offset) (map[int32][]int64, error) {
	admin := kadm.NewClient(r.client)
	starts, err := admin.ListStartOffsets(ctx, r.topic)
	if err == nil {
		err = starts.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("listing the start of topic %s: %w", r.topic, err)
	}
	ends, err := admin.ListEndOffsets(ctx, r.topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("listing the end of topic %s: %w", r.topic, err)
	}
	groups := r.groups()
	committed, err := fetchOffsets(ctx, admin, groups)
	if err != nil {
		return nil, err
	}
	positions := make(map[int32][]int64, len(partitions))
	for id := range partitions {
		start, ok := starts.Lookup(r.topic, id)
		end, found := ends.Lookup(r.topic, id)
		if !ok || !found {
			return nil, fmt.Errorf("topic %s has no partition %d", r.topic, id)
		}
		for _, group := range groups {
			at := start.Offset
			if c, ok := committed[group].Fetched.Lookup(r.topic, id); ok && c.At >= 0 {
				at = c.At
			}
			if at < start.Offset || at > end.Offset {
				r.log.Error("Kafka lost records", "group", group, "topic", r.topic, "partition", id,
					"committed", at, "from", start.Offset, "to", end.Offset)
				at = start.Offset
			}
			positions[id] = append(positions[id], at)
		}
	}
	return positions, nil
}
