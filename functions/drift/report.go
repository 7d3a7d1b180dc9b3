package main

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"math"
	"strings"
	"sync"
	"time"
)

//go:embed report.html
var reportText string

// page is the one template: a self-contained file, without scripts or anything from
// elsewhere. It is read when it is used first.
var page = sync.OnceValue(func() *template.Template {
	return template.Must(template.New("report").Funcs(pageFuncs).Parse(reportText))
})

var pageFuncs = template.FuncMap{
	"percent": func(v float64) string { return fmt.Sprintf("%.1f %%", 100*v) },
	"number":  number,
	"p": func(v *float64) string {
		if v == nil {
			return ""
		}
		return number(*v)
	},
	"when":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"bars":  bars,
	"trend": trend,
	"method": func(s string) string {
		if n := methodNames[s]; n != "" {
			return n
		}
		return s
	},
	"isTest": func(s string) bool { return s == "ks" || s == "chisquare" || s == "z" },
}

var methodNames = map[string]string{"ks": "Kolmogorov-Smirnov", "wasserstein": "Wasserstein, normed", "jensenshannon": "Jensen-Shannon",
	"psi": "PSI", "chisquare": "chi-square", "z": "z-test of proportions"}

func number(v float64) string {
	switch a := math.Abs(v); {
	case a == 0:
		return "0"
	case a >= math.MaxFloat64:
		return "∞"
	case a < 0.0001 || a >= 1e6:
		return fmt.Sprintf("%.2e", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// render writes the page. The same report gives the same bytes.
func (r *Report) render(w io.Writer) error {
	if err := page().Execute(w, r); err != nil {
		return fmt.Errorf("writing the report of %s: %w", r.Model, err)
	}
	return nil
}

const (
	chartWidth, chartHeight = 320.0, 110.0
	barFloor                = 96.0
)

// bars draws two distributions over each other: the reference as bars, the window as
// a line of steps, with the numbers of each bar as its title.
func bars(c *Column) template.HTML {
	if len(c.Labels) == 0 {
		return ""
	}
	top := 0.0
	for i := range c.Labels {
		top = max(top, c.ReferenceShare[i], c.CurrentShare[i])
	}
	if top == 0 {
		top = 1
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="%s"><title>%s</title>`, chartWidth, chartHeight,
		template.HTMLEscapeString("Distribution of "+c.Name+", reference and window"), template.HTMLEscapeString("Distribution of "+c.Name))
	step := chartWidth / float64(len(c.Labels))
	line := strings.Builder{}
	for i, label := range c.Labels {
		x, h := float64(i)*step, barFloor*c.ReferenceShare[i]/top
		y := barFloor - barFloor*c.CurrentShare[i]/top
		fmt.Fprintf(&b, `<rect class="ref" x="%.2f" y="%.2f" width="%.2f" height="%.2f"/>`, x+0.5, barFloor-h, step-1, h)
		fmt.Fprintf(&line, "%s%.2f %.2f H%.2f", map[bool]string{true: "M", false: "L"}[i == 0], x, y, x+step)
		// The whole height answers to the pointer.
		fmt.Fprintf(&b, `<rect class="hit" x="%.2f" y="0" width="%.2f" height="%g"><title>%s: %.1f %% before, %.1f %% now</title></rect>`, x, step, barFloor,
			template.HTMLEscapeString(label), 100*c.ReferenceShare[i], 100*c.CurrentShare[i])
	}
	fmt.Fprintf(&b, `<path class="cur" d="%s"/><line class="axis" x1="0" y1="%g" x2="%g" y2="%g"/>`, line.String(), barFloor, chartWidth, barFloor)
	fmt.Fprintf(&b, `<text x="0" y="%g">%s</text><text x="%g" y="%g" text-anchor="end">%s</text></svg>`, chartHeight-2,
		template.HTMLEscapeString(shorten(c.Labels[0])), chartWidth, chartHeight-2, template.HTMLEscapeString(shorten(c.Labels[len(c.Labels)-1])))
	return template.HTML(b.String()) //nolint:gosec // all texts in it are escaped
}

func shorten(s string) string {
	if r := []rune(s); len(r) > 24 {
		return string(r[:23]) + "…"
	}
	return s
}

// trend draws the share of drifted columns of the windows before and of this one.
func trend(r *Report) template.HTML {
	list := append(append([]Past(nil), r.Past...), Past{r.To, r.Share, r.State})
	const width, height, floor = 660.0, 90.0, 76.0
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %g %g" role="img" aria-label="Share of drifted columns in the last %d windows, %.0f %% now"><title>Share of drifted columns by window</title>`,
		width, height, len(list), 100*r.Share)
	limit := floor - (floor-6)*r.ShareLimit
	fmt.Fprintf(&b, `<line class="limit" x1="0" y1="%.2f" x2="%g" y2="%.2f"/>`, limit, width, limit)
	step := width / float64(max(len(list), 30))
	for i, p := range list {
		h := max(1, (floor-6)*p.Share)
		class := "ref"
		if p.State == detected || p.State == drifting {
			class = "bad"
		}
		fmt.Fprintf(&b, `<rect class="%s" x="%.2f" y="%.2f" width="%.2f" height="%.2f"><title>%s: %.0f %%, %s</title></rect>`, class,
			float64(i)*step+0.5, floor-h, max(1, step-1), h, p.To.UTC().Format("2006-01-02 15:04:05"), 100*p.Share, template.HTMLEscapeString(p.State))
	}
	fmt.Fprintf(&b, `<line class="axis" x1="0" y1="%g" x2="%g" y2="%g"/><text x="0" y="%g">%s</text><text x="%.2f" y="%g" text-anchor="end">%s</text></svg>`, floor, width, floor,
		height-2, list[0].To.UTC().Format("15:04:05"), max(110, step*float64(len(list))), height-2, list[len(list)-1].To.UTC().Format("15:04:05"))
	return template.HTML(b.String()) //nolint:gosec // all texts in it are escaped
}
