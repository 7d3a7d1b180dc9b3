package eventing

import (
	"crypto/md5" //nolint:gosec // Knative's own naming; nothing secret hangs on it.
	"encoding/hex"
)

// JobName is the name of the job that the sink starts for an event of that source
// and id: the same event gives the same name, and so no second job. It is the name
// that Knative gives the Job.
func (j *JobSink) JobName(source, id string) string {
	const longest, hashed = 63, 32 // of a Kubernetes name, of an MD5 in hex
	parent := j.Name + "-"
	sum := md5.Sum([]byte(source + id)) //nolint:gosec // see above
	suffix := hex.EncodeToString(sum[:])
	if len(parent)+len(suffix) <= longest {
		return parent + suffix
	}
	sum = md5.Sum([]byte(parent + suffix)) //nolint:gosec // see above
	return parent[:min(len(parent), longest-hashed)] + hex.EncodeToString(sum[:])
}
