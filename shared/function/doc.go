// Package function is the runtime of every Millrace function: it receives
// CloudEvents over HTTP, hands them to a Handler in batches, and answers with the
// replies.
package function
