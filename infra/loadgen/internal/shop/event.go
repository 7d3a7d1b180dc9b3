// Package shop simulates the customers of a shop and yields their clickstream:
// people come, look at products, put some into the cart, take some out, buy some
// and leave.
//
// The stream is a function of its Config alone: the same Config gives the same
// events again (on another processor architecture prices may differ in the last
// cent, where it fuses multiplications). The package knows nothing of message formats, brokers
// or wall clocks; package shape writes the events down.
package shop

import "time"

// Type is what a customer did.
type Type uint8

// What there is to do.
const (
	View Type = iota
	Cart
	RemoveFromCart
	Purchase
)

// TypeNames are the names of the types in the clickstream's messages, indexed by
// Type.
var TypeNames = [...]string{"view", "cart", "remove_from_cart", "purchase"}

func (t Type) String() string { return TypeNames[t] }

// ParseType is the inverse of String.
func ParseType(s string) (Type, bool) {
	for i, name := range TypeNames {
		if name == s {
			return Type(i), true
		}
	}
	return 0, false
}

// NoIndex marks a product that is in no catalogue, such as one read from a file.
const NoIndex = -1

// Product is one article. CategoryCode and Brand are "" where the shop does not
// know them, which real data has in about a third and a seventh of its events.
type Product struct {
	// Index is the product's place in its catalogue, or NoIndex.
	Index      int
	ID         int64
	CategoryID int64
	// CategoryCode is the dotted taxonomy, one to three levels.
	CategoryCode string
	Brand        string
	// Price is in the shop's currency, with two decimals.
	Price float64
}

// Event is one action of one customer. No two events of a simulated stream have
// the same session and the same time, so (Session, Time) identifies an event.
type Event struct {
	// Time is in seconds since the Unix epoch, the resolution of the messages.
	Time    int64
	Type    Type
	Product *Product
	User    int64
	Session string
}

// TimeLayout is how the clickstream writes an event's time.
const TimeLayout = "2006-01-02 15:04:05 UTC"

// FormatTime writes a time as the clickstream does.
func FormatTime(seconds int64) string {
	return time.Unix(seconds, 0).UTC().Format(TimeLayout)
}
