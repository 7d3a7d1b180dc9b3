package main

// open is an alert that is open.
type open struct {
	id       int64
	severity severity
}

// decision is what is to be done about a group. At most one alert of it is open before
// and after.
type decision struct {
	// raise opens an alert, or else update counts events in the open one.
	raise, update bool
	// escalate: the severity of the open one rises.
	escalate bool
	// resolve closes the one that is open after that.
	resolve bool
}

// decide says what a change means for a group, of which known are the open alert, if
// any, and its members before the change. opened tells that the change's first event has
// opened an alert before: it came again.
func decide(c *change, now *open, before map[string]span, opened bool) (d decision) {
	if now != nil {
		d.update = c.events > 0
		d.escalate = d.update && ranks[c.severity] > ranks[now.severity]
	}
	if len(c.rule.ResolvedBy) == 0 {
		d.raise = now == nil && c.events > 0 && c.opener != nil && !opened
		return d
	}
	after := make(map[string]span, len(before)+len(c.members))
	for name, s := range before {
		after[name] = s
	}
	began := false // something began that had not ended before the change
	for name, s := range c.members {
		if s.began.After(before[name].ended) && s.began.After(before[name].began) {
			began = true
		}
		after[name] = after[name].join(s)
	}
	active := false
	for _, s := range after {
		active = active || s.active()
	}
	// What began and ended within one batch is told of too.
	d.raise = now == nil && c.events > 0 && c.opener != nil && !opened && (active || began)
	d.resolve = (now != nil || d.raise) && !active
	return d
}
