package events

const (
	Name     = "dev.millrace.name.v1"
	Greeting = "dev.millrace.greeting.v1"
)
