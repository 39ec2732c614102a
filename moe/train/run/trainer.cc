#include "moe/train/run/trainer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "glog/logging.h"
#include "moe/base/file.h"
#include "moe/base/status.h"
#include "moe/ir/state.h"
#include "moe/model/config.h"
#include "moe/train/checkpoint/session_state.h"
#include "moe/train/run/learning_rate.h"
#include "moe/train/run/resume_check.h"

namespace moe::train {
namespace {

double Scalar(const runtime::Reports& reports, const std::string& name, double otherwise = 0) {
  const auto it = reports.find(name);
  return it == reports.end() || it->second.empty() ? otherwise : it->second[0];
}

// Of the tokens per expert, the most over the mean; the worst layer.
double WorstLoad(const runtime::Reports& reports) {
  double worst = 0;
  for (const auto& [name, load] : reports) {
    if (!absl::StartsWith(name, "load ") || load.empty()) continue;
    const double mean = std::accumulate(load.begin(), load.end(), 0.0) / static_cast<double>(load.size());
    if (mean > 0) worst = std::max(worst, *std::max_element(load.begin(), load.end()) / mean);
  }
  return worst;
}

// Steps of an epoch that each bucket takes.
std::vector<double> StepShares(const std::vector<StepBucket>& buckets, const Dataset& data) {
  std::vector<double> shares;
  for (const StepBucket& b : buckets) {
    shares.push_back(static_cast<double>(data.samples_per_epoch(b.seq_length)) /
                     static_cast<double>(std::max<int64_t>(1, b.global_batch)));
  }
  return shares;
}

}  // namespace

Trainer::Trainer(const RunConfig& resolved, const Module& module, std::vector<StepBucket> buckets,
                 const Dataset* data, TrainerOptions options)
    : config_(resolved),
      module_(module),
      buckets_(std::move(buckets)),
      order_(StepShares(buckets_, *data)),
      data_(data),
      options_(std::move(options)) {
  for (const StepBucket& b : buckets_) {
    tuners_.push_back(TunerOf(b, options_.tuning_interval));
  }
  meta_.model_config = model::ModelConfigToText(config_.model());
  meta_.run_config = RunConfigToText(config_);
  meta_.seed = config_.train().seed();
  meta_.data_fingerprint = data_->Fingerprint();
  const TrainConfig& t = config_.train();
  if (StrategyOf(config_).precision == strategy::Precision::kF16) {
    loss_scale_.emplace(LossScale::Options{.initial = t.initial_loss_scale(),
                                           .least = t.min_loss_scale(),
                                           .window = t.loss_scale_window(),
                                           .hysteresis = t.hysteresis()});
    meta_.loss_scale = loss_scale_->state();
  }
  if (buckets_.size() == 1) return;
  // Which samples a step has follows from the batches of all lengths.
  for (const StepBucket& b : buckets_) absl::StrAppend(&meta_.data_fingerprint, "-", b.global_batch);
}

Trainer::Trainer(const RunConfig& resolved, const Module& module, runtime::Session* session,
                 const Dataset* data, TrainerOptions options)
    : Trainer(resolved, module,
              {{.seq_length = resolved.model().seq_length(),
                .global_batch = resolved.train().global_batch_size(),
                .plans = {{session, std::max<int64_t>(1, NumMicrobatches(resolved)),
                           resolved.train().micro_batch_size()}}}},
              data, std::move(options)) {}

MicroBatchTuner Trainer::TunerOf(const StepBucket& bucket, int64_t interval) {
  std::vector<MicroBatchTuner::Plan> plans;
  for (const StepPlan& p : bucket.plans) {
    CHECK(p.meter != nullptr || bucket.plans.size() == 1) << "several plans, and no meter to compare them";
    plans.push_back({p.micro_batch_size, [m = p.meter](const StepTimes& times) { return m->Play(times); }});
  }
  return MicroBatchTuner(std::move(plans), bucket.first_plan, interval);
}

const StepPlan& Trainer::PlanOf(int bucket) const { return buckets_[bucket].plans[tuners_[bucket].plan()]; }

Trainer::Next Trainer::NextStep() const {
  // With one length the samples simply go on, also where an earlier part of the run had other batches.
  if (buckets_.size() == 1) return {0, meta_.consumed_samples};
  order_.MoveTo(meta_.step);
  const int b = order_.next();
  return {b, order_.used(b) * buckets_[b].global_batch};
}

absl::Status Trainer::Resume(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(path));
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(dir));
    RETURN_IF_ERROR(
        Annotate(CheckResume(checkpoint->meta(), config_, meta_.data_fingerprint, /*planned=*/true), dir));
  }
  ASSIGN_OR_RETURN(const CheckpointMeta saved,
                   RestoreSession(dir, config_.model(), module_, *buckets_[0].plans[0].session));
  meta_.step = saved.step;
  meta_.consumed_samples = saved.consumed_samples;
  meta_.skipped_steps = saved.skipped_steps;
  meta_.nan_steps = saved.nan_steps;
  meta_.consecutive_skips = saved.consecutive_skips;
  if (loss_scale_ && saved.loss_scale.value > 0) {
    loss_scale_->Restore(saved.loss_scale);
    meta_.loss_scale = saved.loss_scale;
  }
  last_checkpoint_ = dir;
  return absl::OkStatus();
}

absl::Status Trainer::LoadWeights(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string dir, FindCheckpoint(path));
  ASSIGN_OR_RETURN(
      const CheckpointMeta saved,
      RestoreSession(dir, config_.model(), module_, *buckets_[0].plans[0].session, /*moments=*/false));
  meta_.step = saved.step;
  last_checkpoint_ = dir;
  return absl::OkStatus();
}

runtime::StepInputs Trainer::InputsOf(const Batch& batch, int64_t microbatches, double* valid) {
  runtime::StepInputs in;
  in.tokens = batch.tokens;
  in.labels = batch.labels;
  in.mask = batch.mask;
  in.positions.resize(batch.seq_length);
  std::iota(in.positions.begin(), in.positions.end(), 0);
  *valid = std::accumulate(batch.mask.begin(), batch.mask.end(), 0.0);
  in.scalars = {{"inv_tokens", 1 / std::max(1.0, *valid)},
                {"inv_microbatches", 1.0 / static_cast<double>(microbatches)}};
  return in;
}

absl::StatusOr<runtime::StepInputs> Trainer::NextInputs() const {
  const TrainConfig& t = config_.train();
  const Next next = NextStep();
  const StepBucket& bucket = buckets_[next.bucket];
  Batch batch(bucket.global_batch, bucket.seq_length);
  RETURN_IF_ERROR(data_->Fill(next.first, batch));
  double valid = 0;
  runtime::StepInputs in = InputsOf(batch, PlanOf(next.bucket).microbatches, &valid);
  // Skipped steps leave weights and moments alone, so they count neither for the schedule (as in Megatron, whose
  // scheduler moves with successful updates) nor for the bias corrections.
  const int64_t update = meta_.step - meta_.skipped_steps + 1;
  in.scalars["learning_rate"] = LearningRate(
      {.peak = t.lr(), .floor = t.min_lr(), .warmup = t.lr_warmup_iters(), .total = t.train_iters()}, update);
  if (loss_scale_) {
    in.scalars["loss_scale"] = loss_scale_->value();
    in.scalars["inv_loss_scale"] = 1 / loss_scale_->value();
  }
  in.scalars["bias1"] = 1 - std::pow(t.adam_beta1(), static_cast<double>(update));
  in.scalars["bias2"] = 1 - std::pow(t.adam_beta2(), static_cast<double>(update));
  return in;
}

absl::StatusOr<StepMetrics> Trainer::Step() {
  const TrainConfig& t = config_.train();
  ASSIGN_OR_RETURN(const runtime::StepInputs inputs, NextInputs());
  const int64_t step = meta_.step + 1;
  const int b = NextStep().bucket;
  const StepBucket& bucket = buckets_[b];
  const StepPlan& plan = PlanOf(b);
  if (options_.before_step) options_.before_step(step);
  const bool meters = tuners_[b].meters();
  if (meters) plan.meter->Start();
  const absl::Time start = absl::Now();
  absl::StatusOr<runtime::Reports> reports = plan.session->TrainStep(inputs);
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  if (!reports.ok()) return Annotate(reports.status(), absl::StrCat("step ", step));
  StepTimes times;
  if (meters) {
    ASSIGN_OR_RETURN(times, plan.meter->Stop());
  }
  if (options_.after_step) options_.after_step(step);

  StepMetrics m;
  m.iteration = meta_.step = step;
  m.consumed_samples = meta_.consumed_samples += bucket.global_batch;
  m.train_iters = t.train_iters();
  m.milliseconds = 1e3 * seconds;
  m.tokens_per_second = std::round(1 / inputs.scalars.at("inv_tokens")) / seconds;
  m.tflops_per_device = bucket.flops_per_step / seconds / static_cast<double>(options_.devices) / 1e12;
  if (options_.peak_flops > 0) m.mfu = 1e12 * m.tflops_per_device / options_.peak_flops;
  if (buckets_.size() > 1) m.seq_length = bucket.seq_length;
  if (bucket.plans.size() > 1) m.micro_batch_size = plan.micro_batch_size;
  if (tuners_[b].Record(seconds, times) && options_.tuned) options_.tuned(b, tuners_[b]);
  m.learning_rate = inputs.scalars.at("learning_rate");
  m.global_batch_size = bucket.global_batch;
  m.lm_loss = Scalar(*reports, "lm loss", std::nan(""));
  m.grad_norm = Scalar(*reports, "grad norm");
  const bool applied = Scalar(*reports, "finite", 1) != 0, finite_loss = std::isfinite(m.lm_loss);
  // An overflow of the scale alone, which is about to be lowered: neither a failure nor a sign of health.
  const bool backing_off = !applied && finite_loss && loss_scale_ && loss_scale_->CanShrink();
  if (loss_scale_) {
    m.loss_scale = loss_scale_->value();
    loss_scale_->After(applied);
    meta_.loss_scale = loss_scale_->state();
  }
  if (!applied) ++meta_.skipped_steps;
  if (!finite_loss) ++meta_.nan_steps;
  if (!backing_off) meta_.consecutive_skips = applied && finite_loss ? 0 : meta_.consecutive_skips + 1;
  m.skipped_iterations = meta_.skipped_steps;
  m.nan_iterations = meta_.nan_steps;
  const int64_t moe_layers = model::NumMoeLayers(config_.model());
  m.has_experts = moe_layers > 0;
  if (m.has_experts) {
    const double routed = Scalar(*reports, "routed");
    m.load_max_over_mean = WorstLoad(*reports);
    m.dropped = routed > 0 ? 1 - Scalar(*reports, "kept") / routed : 0;
    m.aux_loss = Scalar(*reports, "aux loss") / static_cast<double>(moe_layers);
    m.z_loss = Scalar(*reports, "z loss") / static_cast<double>(moe_layers);
  }
  return m;
}

absl::StatusOr<TrainResult> Trainer::Train() {
  const TrainConfig& t = config_.train();
  TrainResult result;
  result.first_step = result.last_step = meta_.step;
  std::optional<MetricsWriter> metrics;
  if (!options_.run_dir.empty() && options_.writes) {
    ASSIGN_OR_RETURN(metrics, MetricsWriter::Open(JoinPath(options_.run_dir, "metrics.jsonl"), meta_.step));
  }
  double since = 0, tokens_since = 0, tflop_since = 0;  // since the last progress line: seconds, and so on
  int64_t steps_since = 0;
  double tokens = 0;
  int64_t saved_at = -1;
  while (meta_.step < t.train_iters() && !Stopped()) {
    ASSIGN_OR_RETURN(StepMetrics m, Step());
    result.losses.push_back(m.lm_loss);
    result.last_step = m.iteration;
    const double seconds = m.milliseconds / 1e3;
    result.seconds += seconds;
    tokens += m.tokens_per_second * seconds;
    since += seconds;
    tokens_since += m.tokens_per_second * seconds;
    tflop_since += m.tflops_per_device * seconds;
    ++steps_since;
    const bool last = m.iteration == t.train_iters() || Stopped();
    const bool logs = m.iteration % t.log_interval() == 0 || last;
    StepMetrics shown = m;
    shown.milliseconds = 1e3 * since / static_cast<double>(steps_since);
    shown.tokens_per_second = tokens_since / since;
    shown.tflops_per_device = tflop_since / since;
    if (options_.peak_flops > 0) shown.mfu = 1e12 * shown.tflops_per_device / options_.peak_flops;
    if (metrics) RETURN_IF_ERROR(metrics->Write(m));
    if (logs) {
      if (options_.progress) options_.progress(shown);
      since = tokens_since = tflop_since = 0;
      steps_since = 0;
    }
    if (meta_.consecutive_skips >= t.max_consecutive_skips()) {
      return absl::FailedPreconditionError(absl::StrFormat(
          "step %d: loss or gradient was not finite in %d steps in a row (lm loss %g, grad norm %g); their "
          "updates were skipped. Try a lower --lr, a longer --lr_warmup_iters, or resume from an earlier "
          "checkpoint",
          m.iteration, meta_.consecutive_skips, m.lm_loss, m.grad_norm));
    }
    if (t.eval_interval() > 0 && m.iteration % t.eval_interval() == 0 && !last) {
      const absl::StatusOr<double> loss = Evaluate();
      if (loss.ok()) {
        if (metrics) RETURN_IF_ERROR(metrics->WriteEvaluation(m.iteration, *loss));
        if (options_.evaluated) options_.evaluated(m.iteration, *loss);
      } else if (!absl::IsCancelled(loss.status())) {
        return loss.status();
      }
    }
    if (!options_.run_dir.empty() && t.save_interval() > 0 && m.iteration % t.save_interval() == 0) {
      RETURN_IF_ERROR(Save().status());
      saved_at = m.iteration;
    }
  }
  result.interrupted = Stopped() && meta_.step < t.train_iters();
  result.tokens_per_second = result.seconds > 0 ? tokens / result.seconds : 0;
  const bool any = result.last_step > result.first_step;
  if (!options_.run_dir.empty() && saved_at != meta_.step && any) RETURN_IF_ERROR(Save().status());
  result.checkpoint = last_checkpoint_;
  if (metrics) RETURN_IF_ERROR(metrics->Close());
  return result;
}

absl::StatusOr<double> Trainer::Evaluate(int64_t samples) {
  if (samples == 0) samples = config_.train().eval_samples();
  int64_t available = 0;
  for (const StepBucket& b : buckets_) available += data_->held_out_samples(b.seq_length);
  if (available == 0) {
    return absl::FailedPreconditionError("there is no held-out text; set --held_out_fraction above 0");
  }
  double sum = 0, count = 0;
  for (size_t i = 0; i < buckets_.size(); ++i) {
    const StepBucket& bucket = buckets_[i];
    // Of several lengths, each gives its share.
    int64_t here = data_->held_out_samples(bucket.seq_length);
    if (samples > 0 && samples < available) here = (here * samples + available - 1) / available;
    Batch batch(bucket.global_batch, bucket.seq_length);
    for (int64_t first = 0; first < here; first += batch.samples) {
      if (Stopped()) return absl::CancelledError("the evaluation was interrupted");
      RETURN_IF_ERROR(data_->FillHeldOut(first, batch));
      for (int64_t row = std::min(batch.samples, here - first); row < batch.samples; ++row) {
        std::fill_n(batch.mask.begin() + row * batch.seq_length, batch.seq_length, 0.0f);
      }
      double valid = 0;
      const StepPlan& plan = PlanOf(static_cast<int>(i));
      const runtime::StepInputs inputs = InputsOf(batch, plan.microbatches, &valid);
      if (valid == 0) continue;
      absl::StatusOr<runtime::Reports> reports = plan.session->EvalStep(inputs);
      if (!reports.ok()) {
        return Annotate(reports.status(), absl::StrCat("evaluation, held-out sample ", first));
      }
      sum += valid * Scalar(*reports, "lm loss", std::nan(""));
      count += valid;
    }
  }
  return count > 0 ? sum / count : std::nan("");
}

absl::StatusOr<std::string> Trainer::Save() {
  const std::string dir = JoinPath(JoinPath(options_.run_dir, "checkpoint"), CheckpointName(meta_.step));
  RETURN_IF_ERROR(Annotate(SaveSession(dir, meta_, module_, *buckets_[0].plans[0].session, options_.writes),
                           absl::StrCat("checkpoint ", dir)));
  last_checkpoint_ = dir;
  return dir;
}

}  // namespace moe::train
