package features

// View is a set of features that are looked up together by one entity: a feature
// view of Feast. Names of views, join keys and features are what clients send.
type View struct {
	Name        string
	Description string
	// JoinKeys identify the entity.
	JoinKeys []JoinKey
	// Features are places in All.
	Features []int
}

// JoinKey is one part of an entity's key: an Int64 or a String.
type JoinKey struct {
	Name string
	Type Type
}

// UserProduct is what is known of a user and a product: the features of the latest
// event of the two, by the time of the event.
var UserProduct = View{
	Name:        "user_product_features",
	Description: "Of a user and a product: the features of their latest event.",
	JoinKeys:    []JoinKey{{"user_id", Int64}, {"product_id", Int64}},
	Features:    []int{Brand, Price, EventWeekday, CategoryCodeLevel1, CategoryCodeLevel2, ActivityCount},
}

// Session is what is known of a session: the features of its last event, in the
// order of arrival.
var Session = View{
	Name:        "session_features",
	Description: "Of a session: how many distinct events have arrived, and the weekday of the last one.",
	JoinKeys:    []JoinKey{{"user_session", String}},
	Features:    []int{EventWeekday, ActivityCount},
}

// Views lists the views. The list is the caller's own.
func Views() []View { return []View{UserProduct, Session} }

// Service names the feature service of the purchase model: all of UserProduct, in
// the order in which the model takes them.
const Service = "purchase_prediction"
