package embedkafka

import (
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// An idempotent producer that gets no answer sends its batch again, and the broker
// must know whether it has it already. kfake keeps that knowledge in memory and
// writes it on a clean stop only, so it is rebuilt here from the log before kfake
// opens it, the way Kafka does it: the header of every batch names its producer and
// sequence numbers. The log is the one source, after a clean stop too: a file that
// may be out of date is never believed.
//
// The file's format and the layout of the log are those of the version of kfake
// that go.mod pins. The tests kill real brokers, and fail should either change.

const (
	// A batch's header: base offset, length, ... up to the number of records.
	batchHeaderBytes = 61
	// keptBatches is how many batches of a producer a partition remembers, Kafka's
	// and kfake's number: a client has no more than that on the way.
	keptBatches = 5
	// A read is short when batches are large, so that little is read in vain, and
	// long when batches are smaller than a short one.
	shortRead = 4 << 10
	longRead  = 256 << 10

	attrControl = 0x20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// producerWindow is one entry of kfake's seq_windows.json: the last batches of a
// producer in a partition.
type producerWindow struct {
	Producer  int64                   `json:"pid"`
	Topic     string                  `json:"topic"`
	Partition int32                   `json:"partition"`
	Entries   [keptBatches]knownBatch `json:"entries"`
	Count     uint8                   `json:"count"`
	At        uint8                   `json:"at"` // of the next entry, in a ring
	Epoch     int16                   `json:"epoch"`
	Seen      bool                    `json:"seen"`
	NextSeq   int32                   `json:"next_seq"`
}

type knownBatch struct {
	FirstSeq int32 `json:"first_seq"`
	NextSeq  int32 `json:"next_seq"`
	Offset   int64 `json:"offset"`
}

// batchHeader is what a window needs of a batch.
type batchHeader struct {
	offset   int64
	producer int64
	epoch    int16
	firstSeq int32
	records  int32
}

func (w *producerWindow) add(b batchHeader) {
	if !w.Seen || w.Epoch != b.epoch {
		// A new epoch numbers from the start.
		*w = producerWindow{
			Producer: w.Producer, Topic: w.Topic, Partition: w.Partition,
			Seen: true, Epoch: b.epoch,
		}
	}
	// Sequence numbers wrap as kfake wraps them.
	w.NextSeq = int32((int64(b.firstSeq) + int64(b.records)) % math.MaxInt32)
	w.Entries[w.At] = knownBatch{b.firstSeq, w.NextSeq, b.offset}
	w.At = (w.At + 1) % keptBatches
	w.Count = min(w.Count+1, keptBatches)
}

// recoverProducers writes what the log in dir says of its producers to where
// kfake reads it on opening dir. Of the log it reads the batches' headers.
func recoverProducers(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "meta.json")); errors.Is(err, fs.ErrNotExist) {
		return nil // a new log
	}
	for _, name := range []string{"pids.log", "groups.log"} {
		if err := cutTornEntry(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	windows, err := readWindows(filepath.Join(dir, "partitions"))
	if err != nil {
		return err
	}
	if err := addProducers(filepath.Join(dir, "pids.log"), windows); err != nil {
		return err
	}
	data, err := json.Marshal(struct {
		Version int              `json:"version"`
		Windows []producerWindow `json:"windows"`
	}{1, windows})
	if err != nil {
		return fmt.Errorf("encoding producers: %w", err)
	}
	// kfake removes *.tmp on opening, and this runs again on every start: a kill
	// in between does no harm.
	path := filepath.Join(dir, "seq_windows.json")
	if err := os.WriteFile(path+".tmp", data, 0o644); err != nil {
		return fmt.Errorf("writing producers: %w", err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("writing producers: %w", err)
	}
	return nil
}

// readWindows reads the windows of all partitions, in the order of their folders.
func readWindows(dir string) ([]producerWindow, error) {
	folders, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing partitions: %w", err)
	}
	windows := []producerWindow{}
	for _, folder := range folders {
		topic, partition, ok := partitionOf(folder.Name())
		if !ok {
			continue
		}
		of := map[int64]*producerWindow{}
		var order []int64
		err := eachBatch(filepath.Join(dir, folder.Name()), func(b batchHeader) {
			w := of[b.producer]
			if w == nil {
				w = &producerWindow{Producer: b.producer, Topic: topic, Partition: partition}
				of[b.producer] = w
				order = append(order, b.producer)
			}
			w.add(b)
		})
		if err != nil {
			return nil, fmt.Errorf("reading producers of %s: %w", folder.Name(), err)
		}
		for _, producer := range order {
			windows = append(windows, *of[producer])
		}
	}
	return windows, nil
}

// partitionOf reads the name of a partition's folder, the topic and the partition
// with a dash in between.
func partitionOf(folder string) (topic string, partition int32, ok bool) {
	i := strings.LastIndexByte(folder, '-')
	if i < 0 {
		return "", 0, false
	}
	p, err := strconv.ParseInt(folder[i+1:], 10, 32)
	if err != nil {
		return "", 0, false
	}
	topic, err = url.PathUnescape(folder[:i])
	return topic, int32(p), err == nil
}

// eachBatch calls fn for every batch of an idempotent producer in a partition's
// log, in order.
func eachBatch(dir string, fn func(batchHeader)) error {
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var bases []int64
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), ".dat"); ok {
			if base, err := strconv.ParseInt(name, 10, 64); err == nil {
				bases = append(bases, base)
			}
		}
	}
	slices.SortFunc(bases, cmp.Compare)
	for _, base := range bases {
		if err := eachBatchIn(filepath.Join(dir, strconv.FormatInt(base, 10)+".dat"), fn); err != nil {
			return err
		}
	}
	return nil
}

// eachBatchIn reads a segment up to where kfake will cut it: at a batch that is not
// whole. To believe in a batch that is then cut off would be to lose it, since its
// producer would be told that it is there.
func eachBatchIn(path string, fn func(batchHeader)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var (
		buf     = make([]byte, longRead)
		bufPos  int64
		bufLen  int64
		read    = shortRead
		inRead  int // batches whose headers came with the last read
		size    = info.Size()
		nextPos int64
	)
	for pos := int64(0); pos+batchHeaderBytes <= size; pos = nextPos {
		if pos < bufPos || pos+batchHeaderBytes > bufPos+bufLen {
			if inRead > read/shortRead {
				read = longRead
			} else {
				read = shortRead
			}
			inRead = 0
			n, err := f.ReadAt(buf[:read], pos)
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			bufPos, bufLen = pos, int64(n)
		}
		inRead++
		h := buf[pos-bufPos:][:batchHeaderBytes]
		nextPos = pos + 12 + int64(binary.BigEndian.Uint32(h[8:]))
		if nextPos < pos+batchHeaderBytes || nextPos > size {
			return nil
		}
		// Only the last batch can be half written.
		if nextPos == size {
			batch := make([]byte, nextPos-pos)
			if _, err := f.ReadAt(batch, pos); err != nil {
				return err
			}
			if crc32.Checksum(batch[21:], castagnoli) != binary.BigEndian.Uint32(batch[17:]) {
				return nil
			}
		}
		b := batchHeader{
			offset:   int64(binary.BigEndian.Uint64(h)),
			records:  int32(binary.BigEndian.Uint32(h[23:])) + 1, // the last one's offset, from the first
			producer: int64(binary.BigEndian.Uint64(h[43:])),
			epoch:    int16(binary.BigEndian.Uint16(h[51:])),
			firstSeq: int32(binary.BigEndian.Uint32(h[53:])),
		}
		if b.producer >= 0 && binary.BigEndian.Uint16(h[21:])&attrControl == 0 {
			fn(b)
		}
	}
	return nil
}

// kfake's own logs consist of entries: length, checksum and version, little endian,
// then JSON. The length counts the version and the JSON, the checksum is over both.
const (
	entryPrefixBytes = 8
	entryVersion     = 1
)

// cutTornEntry removes what a kill left of an entry at the end of a log of kfake.
// kfake would skip it and write after it, and on the next start find neither it nor
// anything that came after.
func cutTornEntry(path string) error {
	data, whole, err := readEntries(path, func([]byte) {})
	if err != nil {
		return err
	}
	if whole == len(data) {
		return nil
	}
	if err := os.Truncate(path, int64(whole)); err != nil {
		return fmt.Errorf("cutting off a torn entry: %w", err)
	}
	return nil
}

// readEntries calls fn with each entry's JSON; whole counts the bytes of the
// entries that are. A file that does not exist has none.
func readEntries(path string, fn func(entry []byte)) (data []byte, whole int, err error) {
	data, err = os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, 0, fmt.Errorf("reading entries: %w", err)
	}
	for rest := data; len(rest) >= entryPrefixBytes+2; rest = data[whole:] {
		n := int64(binary.LittleEndian.Uint32(rest))
		if n < 2 || entryPrefixBytes+n > int64(len(rest)) {
			break
		}
		body := rest[entryPrefixBytes:][:n]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(rest[4:]) {
			break
		}
		fn(body[2:])
		whole += entryPrefixBytes + int(n)
	}
	return data, whole, nil
}

// addProducers makes sure that kfake knows every producer of the log and its latest
// epoch: kfake drops the windows of producers that it does not know, and would give
// their ids to others. An id is noted when it is given out, but an epoch that a
// producer raised by itself is in the log alone, and so is a producer that is older
// than the data folder.
func addProducers(path string, windows []producerWindow) error {
	type entry struct {
		Type     string `json:"type"`
		Producer int64  `json:"pid"`
		Epoch    int16  `json:"epoch"`
		Tx       string `json:"txid,omitempty"`
	}
	epochs := map[int64]int16{}
	if _, _, err := readEntries(path, func(data []byte) {
		var e entry
		switch {
		case json.Unmarshal(data, &e) != nil || e.Type != "init":
		case e.Tx != "":
			epochs[e.Producer] = math.MaxInt16 // kfake's alone to raise
		default:
			epochs[e.Producer] = e.Epoch
		}
	}); err != nil {
		return err
	}
	missing := map[int64]bool{}
	for _, w := range windows {
		if epoch, ok := epochs[w.Producer]; !ok || epoch < w.Epoch {
			epochs[w.Producer] = w.Epoch
			missing[w.Producer] = true
		}
	}
	var add []byte
	for producer := range missing {
		data, err := json.Marshal(entry{Type: "init", Producer: producer, Epoch: epochs[producer]})
		if err != nil {
			return fmt.Errorf("encoding producers: %w", err)
		}
		body := append(binary.LittleEndian.AppendUint16(nil, entryVersion), data...)
		add = binary.LittleEndian.AppendUint32(add, uint32(len(body)))
		add = binary.LittleEndian.AppendUint32(add, crc32.Checksum(body, castagnoli))
		add = append(add, body...)
	}
	if len(add) == 0 {
		return nil
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("adding producers: %w", err)
	}
	_, err = f.Write(add)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("adding producers: %w", err)
	}
	return nil
}
