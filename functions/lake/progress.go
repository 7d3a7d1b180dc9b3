package main

import (
	"fmt"
	"strings"
)

// progress is how far a partition is drained. It is committed to Kafka: offset as
// the group's offset, the rest as the commit's metadata.
//
// Usually base is the beginning of the chunk that offset is in, and from is Window
// before it: a drain begins again at base, to replace the partial objects of that
// chunk by fuller ones. Neither can be computed once the log's start has passed
// them, or when the layout was changed by configuration. Then a new base begins at
// offset: records before it stay in the objects they are in, and what is written
// from base on is again a function of the log, of base and of from. That is why
// they are remembered.
type progress struct {
	offset int64
	layout layout
	base   int64
	from   int64
	// rebased says that base is not where the chunk began. A drain that was cut
	// short before the change may have written records behind base into objects
	// that begin before it, so these objects must be looked at.
	rebased bool
	// topic is the topic's id, in hexadecimal. One that is deleted and made anew
	// under the same name has another id, and begins its offsets again.
	topic string
}

const progressFormat = "millrace-lake/1 chunk=%d bytes=%d window=%d base=%d from=%d topic=%s"

func (p progress) metadata() string {
	text := fmt.Sprintf(progressFormat, p.layout.Chunk, p.layout.ChunkBytes, p.layout.Window, p.base, p.from, p.topic)
	if p.rebased {
		text += " rebased"
	}
	return text
}

// parseProgress reads a commit. A commit without our metadata, made by a tool that
// set the group's offset, gives ok false.
func parseProgress(offset int64, metadata string) (p progress, ok bool) {
	p.offset = offset
	metadata, p.rebased = strings.CutSuffix(metadata, " rebased")
	n, err := fmt.Sscanf(metadata, progressFormat, &p.layout.Chunk, &p.layout.ChunkBytes, &p.layout.Window, &p.base, &p.from, &p.topic)
	ok = err == nil && n == 6 && p.layout.Chunk > 0 &&
		p.base >= 0 && p.base <= offset && p.from >= 0 && p.from <= p.base
	return p, ok
}

// resume says where to go on from what was committed. logStart is the first offset
// that the log still has; committed is -1 when the group has none. lost counts the
// offsets that the log dropped before they were drained.
func resume(l layout, topic string, committed int64, metadata string, logStart int64) (p progress, lost int64) {
	at := committed
	if at < logStart {
		if committed >= 0 {
			lost = logStart - committed
		}
		at = logStart
	}
	was, ok := parseProgress(committed, metadata)
	if ok && lost == 0 && was.topic == topic && was.layout == l && was.from >= logStart && l.start(was.base) == l.start(at) {
		return was, 0
	}
	return progress{
		offset: at, layout: l, base: at, from: min(at, max(logStart, l.start(at)-l.Window, 0)),
		rebased: at > 0, // nothing can begin before 0
		topic:   topic,
	}, lost
}

// next gives the progress when the log is drained up to offset, which is in
// p.base's chunk or behind it.
func (p progress) next(offset, logStart int64) progress {
	p.offset = offset
	if start := p.layout.start(offset); start > p.base {
		p.base = start
		p.from = min(start, max(logStart, start-p.layout.Window, 0))
		p.rebased = false
	}
	return p
}
