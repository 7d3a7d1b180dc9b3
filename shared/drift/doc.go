// Package drift measures how far the distribution of a column has moved from a
// reference, as scipy and Evidently do, and tells by Evidently's rules whether that is
// drift. It estimates a classifier's performance from its scores while labels are late.
//
// The statistics equal scipy's to 1e-9: testdata holds scipy's results, golden.py makes
// them. Columns of a million values are measured in milliseconds.
//
// The rules are those of Evidently 0.6 and 0.7 ("Data drift algorithm" in its
// documentation, and evidently/calculations/stattests in its source):
//
//	reference rows   numbers, more than    numbers, 3 to 5,     two values
//	                 5 distinct values     and categories       or one
//	at most 1000     Kolmogorov-Smirnov    chi-square           z-test of proportions
//	                 p < 0.05              p < 0.05             p < 0.05
//	more             Wasserstein, normed   Jensen-Shannon       Jensen-Shannon
//	                 by the reference's    (base 2) >= 0.1      (base 2) >= 0.1
//	                 deviation >= 0.1
//
// and of a data set that half of its columns or more have drifted. Missing values are
// left out of all of these, as there; how their share moved is a statistic of its own.
//
// The package does no I/O, and knows neither models nor tables.
package drift
