#include "moe/comm/compute_gate.h"

#include <glog/logging.h>
#include <sched.h>
#include <semaphore.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace moe::comm {

struct ComputeGate::Thread {
  Thread() : id(gettid()) { sem_init(&granted, 0, 0); }
  ~Thread() { sem_destroy(&granted); }

  const pid_t id;
  sem_t granted;                // posted once per grant, or per notification where there is no gate
  ComputeGate* gate = nullptr;  // whose token it holds, or will hold again after it has waited
  int core = -1;                // that it is pinned to
  // Guarded by the mutex of the gate.
  int token = -1;
  bool parked = false;   // waits in a Condition, without token
  bool pending = false;  // was made ready before it could park
  Thread* next_ready = nullptr;
  // Guarded by the mutex of the Condition's users.
  Thread* next_waiting = nullptr;
};

namespace {

void Sleep(sem_t* granted) {
  while (sem_wait(granted) != 0) CHECK_EQ(errno, EINTR);
}

}  // namespace

ComputeGate::ComputeGate(int tokens) : num_idle_(tokens) {
  CHECK_GE(tokens, 1);
  for (int i = tokens - 1; i >= 0; --i) idle_.push_back(i);
  // With other numbers of tokens than cores, cores would lie idle or be shared where the system can do
  // better.
  CPU_ZERO(&all_cores_);
  if (tokens == 1 || sched_getaffinity(0, sizeof(all_cores_), &all_cores_) != 0) return;
  if (CPU_COUNT(&all_cores_) != tokens) return;
  for (int i = 0; i < CPU_SETSIZE; ++i) {
    if (CPU_ISSET(i, &all_cores_)) cores_.push_back(i);
  }
}

ComputeGate::Thread& ComputeGate::Self() {
  thread_local Thread self;
  return self;
}

// Called for a thread that sleeps, or by the thread itself. Where the system does not allow it, the thread
// runs where it may.
void ComputeGate::Pin(Thread& t) {
  if (cores_.empty() || t.core == cores_[t.token]) return;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cores_[t.token], &set);
  sched_setaffinity(t.id, sizeof(set), &set);
  t.core = cores_[t.token];
}

void ComputeGate::Unpin(Thread& t) {
  if (t.core < 0) return;
  sched_setaffinity(t.id, sizeof(all_cores_), &all_cores_);
  t.core = -1;
}

bool ComputeGate::TakeIdle(Thread& t) {
  if (idle_.empty()) return false;
  auto best = idle_.end() - 1;
  if (!cores_.empty()) {
    const auto last = std::find_if(idle_.begin(), idle_.end(), [&](int i) { return cores_[i] == t.core; });
    if (last != idle_.end()) best = last;
  }
  t.token = *best;
  idle_.erase(best);
  num_idle_ = static_cast<int>(idle_.size());
  return true;
}

void ComputeGate::Queue(Thread& t) {
  t.next_ready = nullptr;
  (last_ready_ != nullptr ? last_ready_->next_ready : first_ready_) = &t;
  last_ready_ = &t;
}

ComputeGate::Thread* ComputeGate::PassOn(int token) {
  if (first_ready_ == nullptr) {
    idle_.push_back(token);
    num_idle_ = static_cast<int>(idle_.size());
    return nullptr;
  }
  Thread *before = nullptr, *t = first_ready_;
  while (!cores_.empty() && t != nullptr && t->core != cores_[token]) {
    before = t;
    t = t->next_ready;
  }
  if (t == nullptr) {
    before = nullptr;
    t = first_ready_;
  }
  (before != nullptr ? before->next_ready : first_ready_) = t->next_ready;
  if (last_ready_ == t) last_ready_ = before;
  t->token = token;
  return t;
}

void ComputeGate::WakeUp(Thread& t) {
  Pin(t);
  sem_post(&t.granted);
}

void ComputeGate::GetBack(Thread& t) {
  bool granted;
  {
    absl::MutexLock lock(&mutex_);
    t.parked = false;
    granted = TakeIdle(t);
    if (!granted) Queue(t);
  }
  if (granted) {
    Pin(t);
  } else {
    Sleep(&t.granted);
  }
}

void ComputeGate::GiveBack(Thread& t) {
  Thread* next;
  {
    absl::MutexLock lock(&mutex_);
    next = PassOn(t.token);
    t.token = -1;
  }
  if (next != nullptr) WakeUp(*next);
}

void ComputeGate::Park(Thread& t) {
  Thread* next;
  {
    absl::MutexLock lock(&mutex_);
    if (t.pending) {
      t.pending = false;
      return;
    }
    t.parked = true;
    next = PassOn(t.token);
    t.token = -1;
  }
  if (next != nullptr) WakeUp(*next);
  Sleep(&t.granted);
}

void ComputeGate::MakeReady(Thread& t) {
  {
    absl::MutexLock lock(&mutex_);
    if (!t.parked) {
      t.pending = true;
      return;
    }
    t.parked = false;
    if (!TakeIdle(t)) return Queue(t);
  }
  WakeUp(t);
}

void ComputeGate::Enter() {
  Thread& t = Self();
  CHECK(t.gate == nullptr) << "a thread holds one token at most";
  t.gate = this;
  GetBack(t);
}

void ComputeGate::Leave() {
  Thread& t = Self();
  CHECK(t.gate == this) << "leaves a gate that it has not entered";
  t.gate = nullptr;
  GiveBack(t);
  Unpin(t);
}

bool ComputeGate::HasIdleTokens() {
  const ComputeGate* gate = Self().gate;
  return gate == nullptr || gate->num_idle_ > 0;
}

ComputeGate::Released::Released() : gate_(Self().gate) {
  if (gate_ == nullptr) return;
  Self().gate = nullptr;
  gate_->GiveBack(Self());
}

ComputeGate::Released::~Released() {
  if (gate_ != nullptr) gate_->Enter();
}

void ComputeGate::Condition::Wait(absl::Mutex* mutex) {
  Thread& t = Self();
  Thread** end = &waiting_;
  while (*end != nullptr) end = &(*end)->next_waiting;
  *end = &t;
  t.next_waiting = nullptr;
  mutex->Unlock();
  if (t.gate != nullptr) {
    t.gate->Park(t);
  } else {
    Sleep(&t.granted);
  }
  mutex->Lock();
}

void ComputeGate::Condition::NotifyAll() {
  Thread* t = waiting_;
  waiting_ = nullptr;
  while (t != nullptr) {
    // Those who are woken need the mutex before they can wait again, or end.
    Thread* next = t->next_waiting;
    if (t->gate != nullptr) {
      t->gate->MakeReady(*t);
    } else {
      sem_post(&t->granted);
    }
    t = next;
  }
}

}  // namespace moe::comm
