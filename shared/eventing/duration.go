package eventing

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	isoDuration = func() *regexp.Regexp {
		const n = `(\d+(?:[.,]\d+)?)`
		return regexp.MustCompile(`^P(?:` + n + `W)?(?:` + n + `D)?(?:T(?:` + n + `H)?(?:` + n + `M)?(?:` + n + `S)?)?$`)
	}()
	isoUnits = [...]time.Duration{7 * 24 * time.Hour, 24 * time.Hour, time.Hour, time.Minute, time.Second}
)

// parseDuration reads an ISO 8601 duration such as PT0.2S, PT1M30S or P1DT12H.
// Years and months have no fixed length and are refused.
func parseDuration(s string) (time.Duration, error) {
	parts := isoDuration.FindStringSubmatch(s)
	if parts == nil || strings.HasSuffix(s, "T") || s == "P" {
		return 0, fmt.Errorf("%q is not an ISO 8601 duration such as PT0.2S or PT5M (years and months are not supported)", s)
	}
	var total float64
	for i, unit := range isoUnits {
		if parts[i+1] == "" {
			continue
		}
		n, err := strconv.ParseFloat(strings.Replace(parts[i+1], ",", ".", 1), 64)
		if err != nil {
			return 0, fmt.Errorf("parsing duration %q: %w", s, err)
		}
		total += n * float64(unit)
	}
	if total > math.MaxInt64/2 {
		return 0, fmt.Errorf("duration %q is too long", s)
	}
	return time.Duration(math.Round(total)), nil
}
