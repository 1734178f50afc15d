// Package deliver makes one attempt to send one request to one hook, and says in a small closed vocabulary how it went.
//
// It decides neither when to try again (package retry) nor in what order (package order), and keeps no state but idle connections. All that can go
// wrong on the way to a hook is classified here, once: above it there are only a Class, its Verdict and a reason in plain words. The URL of a chat
// webhook is a secret, so no reason ever holds a URL, a header value or an error text that might.
package deliver
