// Package admin is what a person does with a running notifier by its commands: log in to its broker, look at dead letters and attempts, and find what hooks have
// left behind that are no longer configured.
//
// What is printed comes from events, whose names are anybody's: nothing in it can move a terminal's cursor. No hook's URL, header or secret is ever known here.
package admin
