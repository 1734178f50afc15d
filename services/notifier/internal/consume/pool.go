package consume

import "time"

// linger is how long a goroutine of a pool waits for more to do.
const linger = time.Second

// pool does jobs, each in a goroutine that takes the next one when it is there soon: a new one would have to grow its stack for each job, and one that
// waits for ever costs an idle hook memory. How many there are at a time, the caller bounds.
type pool[J any] struct {
	jobs chan J // closed when no more come
	do   func(J)
}

func newPool[J any](do func(J)) *pool[J] { return &pool[J]{make(chan J), do} }

func (p *pool[J]) start(j J) {
	select {
	case p.jobs <- j:
	default:
		go p.work(j)
	}
}

func (p *pool[J]) work(j J) {
	idle := time.NewTimer(linger)
	defer idle.Stop()
	for more := true; more; {
		p.do(j)
		idle.Reset(linger)
		select {
		case j, more = <-p.jobs:
		case <-idle.C:
			return
		}
	}
}
