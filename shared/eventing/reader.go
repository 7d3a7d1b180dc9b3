package eventing

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-dev/millrace/shared/events"
)

// reader reads the topic of a Broker for all of its Triggers: every record is fetched
// and decoded once, and those Triggers whose filter it passes get it into a queue of
// their own.
//
// Engines share a Broker's partitions as members of one consumer group, which is never
// committed to. Where a Trigger got to is in the group of its own name, which has no
// members: its offsets are committed by the engine that has the partition.
//
// The reader waits for nobody. A Trigger whose queue of a partition is full, or that
// begins further back, is detached from it: it reads that partition itself until it
// has caught up.
type reader struct {
	config   *Config
	log      *slog.Logger
	group    string
	topic    string
	triggers []*subscription
	interest *interest

	// client is set once ready is closed: the group's callbacks may come before.
	client *kgo.Client
	ready  chan struct{}
	// opts are those of the clients that detached Triggers read with.
	opts []kgo.Opt
	// stopped is closed when nothing new is to be begun; hard ends all requests.
	stopped    chan struct{}
	stopOnce   sync.Once
	hard       context.Context
	cancel     context.CancelFunc
	background sync.WaitGroup
	// moved wakes the committing goroutine.
	moved chan struct{}

	mu     sync.Mutex
	shared map[int32]*sharedPartition
	id     *kadm.TopicID // nil while it is not known
	// scratch, matched and trouble belong to the polling goroutine; matched are the
	// events found for each Trigger.
	scratch events.Message
	matched [][]queued
	trouble fetchTrouble
}

// subscription is a Trigger as the reader sees it.
type subscription struct {
	work
	group    string
	filter   Filter
	interest *interest // of this Trigger alone
	catchUp  catchUp
	commits  commits
}

// add adds a Trigger and returns its number.
func (r *reader) add(w work, group string, f Filter) int {
	s := &subscription{work: w, group: group, filter: f, interest: newInterest(f)}
	s.catchUp.reader, s.catchUp.subscription = r, s
	s.commits.reader, s.commits.subscription = r, s
	r.triggers = append(r.triggers, s)
	return len(r.triggers) - 1
}

// start joins the group. Everything else happens on the reader's own goroutines until
// shut is called.
func (r *reader) start(opts []kgo.Opt) error {
	filters := make([]Filter, len(r.triggers))
	for i, s := range r.triggers {
		filters[i] = s.filter
	}
	r.interest, r.matched = newInterest(filters...), make([][]queued, len(filters))
	r.mu.Lock() // the lag may be asked for already
	r.shared = map[int32]*sharedPartition{}
	r.mu.Unlock()
	r.stopped, r.ready, r.moved = make(chan struct{}), make(chan struct{}), make(chan struct{}, 1)
	r.hard, r.cancel = context.WithCancel(context.Background())
	r.opts = fetchOptions(opts, r.config)
	client, err := kgo.NewClient(append(memberOptions(opts, r.config, r.group),
		kgo.ConsumeTopics(r.topic),
		kgo.AdjustFetchOffsetsFn(r.assigned),
		kgo.OnPartitionsRevoked(r.revoked),
		kgo.OnPartitionsLost(r.lost),
	)...)
	if err != nil {
		return fmt.Errorf("making the consumer of group %s: %w", r.group, err)
	}
	r.client = client
	close(r.ready)
	r.background.Go(r.poll)
	r.background.Go(r.commitWhenMoved)
	return nil
}

// shut stops the reader: what is in flight has until the deadline of ctx, then the
// positions are committed and the group is left.
func (r *reader) shut(ctx context.Context) {
	r.stop()
	r.finish(ctx, r.partitions())
	r.cancel()
	r.client.CloseAllowingRebalance()
}

// abandon drops everything as if the process had died: nothing is drained and
// nothing committed. It is for tests.
func (r *reader) abandon() {
	r.cancel()
	r.stop()
	r.forget(r.partitions())
	r.client.CloseAllowingRebalance()
}

func (r *reader) stop() {
	r.stopOnce.Do(func() { close(r.stopped) })
	r.background.Wait()
	for _, s := range r.triggers {
		s.catchUp.close()
	}
}

func (r *reader) partitions() []*sharedPartition {
	r.mu.Lock()
	defer r.mu.Unlock()
	ps := make([]*sharedPartition, 0, len(r.shared))
	for _, p := range r.shared {
		ps = append(ps, p)
	}
	return ps
}

func (r *reader) partition(id int32) *sharedPartition {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.shared[id]
}

// taken are the reader's partitions among those that it no longer has.
func (r *reader) taken(gone map[string][]int32) []*sharedPartition {
	<-r.ready
	var ps []*sharedPartition
	for _, id := range gone[r.topic] {
		if p := r.partition(id); p != nil {
			ps = append(ps, p)
		}
	}
	return ps
}

// revoked runs before another member gets the partitions.
func (r *reader) revoked(ctx context.Context, _ *kgo.Client, gone map[string][]int32) {
	ps := r.taken(gone)
	if len(ps) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, r.config.DrainTimeout)
	defer cancel()
	r.finish(ctx, ps)
}

// lost runs when another member may have the partitions already: what is in flight
// is abandoned, and a commit would be wrong.
func (r *reader) lost(_ context.Context, _ *kgo.Client, gone map[string][]int32) {
	r.forget(r.taken(gone))
}

// finish lets the Triggers end what they have begun of the partitions, commits where
// they got to and forgets the partitions.
func (r *reader) finish(ctx context.Context, ps []*sharedPartition) {
	var qs []*queue
	for _, p := range ps {
		for _, l := range p.lanes {
			qs = append(qs, &l.queue)
		}
	}
	drain(ctx, qs)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), commitTimeout)
	defer cancel()
	r.commit(ctx, ps, true)
	r.forget(ps)
}

// forget ends whatever is still done for the partitions.
func (r *reader) forget(ps []*sharedPartition) {
	r.mu.Lock()
	for _, p := range ps {
		delete(r.shared, p.id)
	}
	r.mu.Unlock()
	for _, p := range ps {
		p.end()
	}
}

func (r *reader) poll() {
	poll(r.hard, r.client, r.stopped, func(f *kgo.FetchTopicPartition) {
		if f.Err != nil {
			r.trouble.note(r.log, f)
			for _, s := range r.triggers {
				s.flow.failure.note("fetching " + f.Topic + ": " + f.Err.Error())
			}
		}
		if p := r.partition(f.Partition); p != nil && len(f.Records) > 0 {
			r.dispatch(p, &f.FetchPartition)
		}
	}, r.nudge)
}

// dispatch hands the records to the Triggers that want them.
func (r *reader) dispatch(p *sharedPartition, f *kgo.FetchPartition) {
	p.mu.Lock()
	detached := p.dispatch(r, f)
	p.mu.Unlock()
	for _, l := range detached {
		l.resume() // it may have got room before it was detached
	}
}

// nudge says that there may be something to commit.
func (r *reader) nudge() {
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// lag is how many records a Trigger has still to do in the reader's partitions.
func (r *reader) lag(trigger int) int64 {
	var sum int64
	for _, p := range r.partitions() {
		sum += p.lanes[trigger].lag()
	}
	return sum
}
