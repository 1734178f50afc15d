package consume

// noticeStuck says once when nothing can move until a failed delivery is tried again: as much is held as may be, all of it behind such heads, and so the events
// of other peers are not even pulled. It says so again when that was over in between.
func (s *session) noticeStuck() {
	held := s.held()
	if held < holdLimit/2 {
		s.stuck = false
	}
	if s.stuck || s.recovering || held < holdLimit || s.queue.Ready()+s.queue.Working() > 0 {
		return
	}
	next, ok := s.queue.Soonest()
	if !ok || s.c.attempts[next.Seq] == nil { // a disconnection that is held: that is soon over
		return
	}
	s.stuck = true
	const advice = "the others wait in the stream until these are delivered or given up. A shorter `give_up` makes them dead letters sooner"
	what := "hook holds as many events as it may, all behind some that it does not take: " + advice + ", `order: none` lets what is behind them pass"
	if s.unordered() {
		what = "hook holds as many events as it may, and takes none of them: " + advice
	}
	s.c.Log.Warn(what, "held", held, "next_attempt", s.c.attempts[next.Seq].at)
}
