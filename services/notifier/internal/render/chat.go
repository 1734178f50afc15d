package render

import (
	"mime"
	"strings"

	"github.com/wgherald/wgherald/pkg/events"
)

// Slack makes a message for Slack's incoming webhooks, which Mattermost and Rocket.Chat take, too. Names can make neither links nor mentions, and what looks
// like a URL is not fetched.
func Slack(e *events.Event, _ []byte) (Request, error) {
	return jsonRequest(struct {
		Text        string `json:"text"`
		Markdown    bool   `json:"mrkdwn"` // off: a name is shown as it is
		UnfurlLinks bool   `json:"unfurl_links"`
		UnfurlMedia bool   `json:"unfurl_media"`
	}{Text: slackEscaper.Replace(text(e))})
}

// slackEscaper takes out the control characters of mrkdwn, as Slack's documentation asks. The others do not know "mrkdwn" and format as Markdown does: a space
// of no width keeps a name behind an @ from being called, and a text in brackets from covering up where a link leads. Backslashes would show in Slack.
var slackEscaper = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;", "@", "@\u200b", "](", "]\u200b(", "][", "]\u200b[")

// Discord makes a message for Discord's webhooks. It has at most 2000 characters because text is that short; names can neither mention anybody nor format.
func Discord(e *events.Event, _ []byte) (Request, error) {
	type mentions struct {
		Parse []string `json:"parse"`
	}
	return jsonRequest(struct {
		Content         string   `json:"content"`
		AllowedMentions mentions `json:"allowed_mentions"`
		Flags           int      `json:"flags"`
	}{discordEscaper.Replace(text(e)), mentions{[]string{}}, 1 << 2}) // SUPPRESS_EMBEDS: what looks like a URL is not fetched
}

var discordEscaper = func() *strings.Replacer {
	var pairs []string
	for _, c := range "\\*_~`|<>[]()#" {
		pairs = append(pairs, string(c), `\`+string(c))
	}
	return strings.NewReplacer(pairs...)
}()

func jsonRequest(v any) (Request, error) {
	body, err := marshal(v)
	return Request{Body: body, Header: map[string]string{"Content-Type": "application/json"}}, err
}

// Ntfy makes a message for the URL of an ntfy topic: text, with the headers Title, Tags and Priority.
func Ntfy(e *events.Event, _ []byte) (Request, error) {
	title, _ := tell(e)
	tag, priority := "information_source", "3"
	switch e.Type {
	case events.PeerConnected, events.InterfaceUp, events.ProbeStarted:
		tag = "green_circle"
	case events.PeerDisconnected, events.InterfaceDown, events.ProbeStopped:
		tag = "red_circle"
	case events.PeerStalled, events.PeerRejected:
		tag, priority = "warning", "4"
	default:
	}
	title = strings.ReplaceAll(title, "=?", "= ?") // or a name could pretend to be encoded, and bring line breaks
	return Request{Body: []byte(text(e)), Header: map[string]string{
		"Content-Type": "text/plain; charset=utf-8",
		"Title":        mime.BEncoding.Encode("utf-8", title), // RFC 2047, which ntfy decodes; a title of plain ASCII stays as it is
		"Tags":         tag,
		"Priority":     priority,
	}}, nil
}
