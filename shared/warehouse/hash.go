package warehouse

import (
	"crypto/sha256"
	"strconv"
	"time"
)

// timeFormat is how record hashes write the time of an event, whatever way it came:
// the same event from the tracking producer and from a database has one hash.
const timeFormat = "2006-01-02 15:04:05.999999 UTC"

// RecordHash is the natural key of a shop event: the SHA-256 of
// product_id|event_time|user_id|event_type|user_session, the time as
// "2019-10-01 02:30:12 UTC" with up to six digits of its second's fraction where
// there is one.
func RecordHash(productID int64, eventTime time.Time, userID int64, eventType, userSession []byte) [sha256.Size]byte {
	var space [256]byte
	b := strconv.AppendInt(space[:0], productID, 10)
	b = eventTime.UTC().AppendFormat(append(b, '|'), timeFormat)
	b = strconv.AppendInt(append(b, '|'), userID, 10)
	b = append(append(b, '|'), eventType...)
	b = append(append(b, '|'), userSession...)
	return sha256.Sum256(b)
}
