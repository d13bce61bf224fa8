"""An iteration of DareU in plain PyTorch, which `rl.py` times beside ours."""

import contextlib
import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

from jaxunlearn.config import AdapterConfig
from jaxunlearn.dareu import driver
from jaxunlearn.models.checkpoint_hf import export_model

Metrics = dict[str, float]

START = 1  # the token before what the classifier reads
CLASSIFIER = AdapterConfig(rank=16, alpha=32.0)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True)
class Drawn:
    """Responses that ours drew, and what it says of them."""

    tokens: torch.Tensor
    log_probs: np.ndarray


class Theirs:
    """The same in PyTorch; every response is full length, so that none needs a mask."""

    def __init__(self, job: driver.Job, factors: Mapping[str, Any] | None):
        """Starts from our weights, and our adapter's factors if one is trained."""
        self.settings, self.training = job.settings, job.training
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with tempfile.TemporaryDirectory() as folder:
            export_model(job.start, Path(folder) / "model")
            model = transformers.AutoModelForCausalLM.from_pretrained(
                Path(folder) / "model", dtype=torch.float32
            ).to(self.device)
        self.start, self.policy = model, copy.deepcopy(model)
        if job.adapter is not None:
            self.policy = adapted(self.policy, job.adapter, factors)
            self.start = None  # it is the policy without its adapter
        self.attributor = adapted(
            copy.deepcopy(model), CLASSIFIER, job.attributors[0].trained
        ).eval()
        head = job.attributors[0].head
        self.head = [self.tensor(head[name]) for name in ("kernel", "bias")]
        tokens, starts = (np.asarray(x) for x in (job.prompts.tokens, job.prompts.starts))
        self.prompts = self.tensor(tokens).long()
        self.seen = self.tensor(np.arange(tokens.shape[1]) >= starts[:, None]).long()
        self.owners = self.tensor(job.prompts.owners).long()
        self.retain = self.tensor(job.retain.tokens).long()
        self.answers = self.tensor(job.retain.mask)[:, 1:].float()
        self.value = torch.nn.Linear(job.start.config.hidden_size, 1, device=self.device)
        torch.nn.init.zeros_(self.value.weight), torch.nn.init.zeros_(self.value.bias)
        self.trainable = [p for p in self.policy.parameters() if p.requires_grad]
        decays = [p for p in (*self.trainable, self.value.weight) if p.ndim > 1]
        spared = [p for p in (*self.trainable, self.value.bias) if p.ndim == 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decays, "weight_decay": self.training.weight_decay},
                {"params": spared, "weight_decay": 0.0},
            ],
            lr=self.training.learning_rate,
        )

    def tensor(self, values: Any) -> torch.Tensor:
        """Our array on their device."""
        return torch.tensor(np.asarray(values), device=self.device)

    def iterate(self, drawn: Drawn | None = None, *, one_pass: bool = False) -> Metrics:
        """One iteration, on responses of its own or on given ones."""
        settings = self.settings
        with torch.no_grad():
            tokens = self.generated() if drawn is None else drawn.tokens.to(self.device)
            whole = torch.cat([self.prompts, tokens], 1)
            seen = torch.cat([self.seen, torch.ones_like(tokens)], 1)
            hidden = self.hidden(self.policy, whole, seen)
            old = self.log_probs(self.policy, hidden, tokens)
            old_values = self.value(hidden)[..., 0]
            with self.reference() as start:
                kl = old - self.log_probs(start, self.hidden(start, whole, seen), tokens)
                teacher = self.retain_logits(start).log_softmax(-1)
            shares = self.shares(tokens, one_pass)
            rewards = self.rewards(shares) - settings.kl_weight * kl
            gains = self.advantages(rewards, old_values)
            returns = gains + old_values
            gains = (gains - gains.mean()) / (gains.var(correction=0) + 1e-8).sqrt()
        for _ in range(settings.updates):
            hidden = self.hidden(self.policy, whole, seen)
            ratio = (self.log_probs(self.policy, hidden, tokens) - old).exp()
            near = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            policy_loss = -torch.minimum(ratio * gains, near * gains).mean()
            values = self.value(hidden.detach())[..., 0]
            near = old_values + (values - old_values).clamp(-0.2, 0.2)
            errors = torch.maximum((values - returns) ** 2, (near - returns) ** 2)
            value_loss = errors.mean() / 2
            log_q = self.retain_logits(self.policy).log_softmax(-1)
            far = (teacher.exp() * (teacher - log_q)).sum(-1) * self.answers
            distill_loss = (far.sum(1) / self.answers.sum(1)).mean()
            loss = policy_loss + settings.distill_weight * distill_loss
            loss = loss + settings.value_weight * value_loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.trainable, self.training.clip_norm)
            torch.nn.utils.clip_grad_norm_(self.value.parameters(), self.training.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        log = {
            "reward": rewards.mean(),
            "attribution": shares[:, -1].mean(),
            "policy_loss": policy_loss,
            "distill_loss": distill_loss,
            "value_loss": value_loss,
            "loss": loss,
            "grad_norm": norm,
        }
        if drawn is not None:
            apart = np.abs(old.cpu().numpy() - drawn.log_probs).max()
            print(f"largest difference of log-probabilities: {apart:.2g}")
            if apart > 1e-4:
                raise SystemExit("log-probabilities differ: the two sides have different models")
        return {name: value.item() for name, value in log.items()}

    def generated(self) -> torch.Tensor:
        """Responses to all prompts, [B, R]."""
        whole = self.policy.generate(
            input_ids=self.prompts,
            attention_mask=self.seen,
            do_sample=True,
            temperature=self.settings.temperature,
            top_k=0,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=None,
            pad_token_id=0,
        )
        return whole[:, self.prompts.shape[1] :]

    def hidden(
        self, model: torch.nn.Module, whole: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """What predicts each token of the responses."""
        places = (seen.cumsum(1) - 1).clamp(min=0)
        found = trunk(model)(input_ids=whole, attention_mask=seen, position_ids=places)
        return found.last_hidden_state[:, self.prompts.shape[1] - 1 : -1]

    def log_probs(
        self, model: torch.nn.Module, hidden: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Of the tokens, at the sampling temperature."""
        logits = model.get_output_embeddings()(hidden) / self.settings.temperature
        return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]

    def retain_logits(self, model: torch.nn.Module) -> torch.Tensor:
        """What predicts each token of the retain rows but the first."""
        return model(input_ids=self.retain).logits[:, :-1]

    @contextlib.contextmanager
    def reference(self) -> Any:
        """The start model."""
        if self.start is not None:
            yield self.start
        else:
            with self.policy.disable_adapter():
                yield self.policy

    def shares(self, tokens: torch.Tensor, one_pass: bool) -> torch.Tensor:
        """How much of each prefix is the owner's, [B, prefixes]."""
        read = torch.nn.functional.pad(tokens, (1, 0), value=START)
        width = tokens.shape[1]
        step = -(-width // self.settings.slices)
        ends = [min(end, width) for end in range(step, width + step, step)]
        model = trunk(self.attributor)
        if one_pass:
            states = model(input_ids=read).last_hidden_state[:, ends]
        else:
            rows = [model(input_ids=read[:, : end + 1]).last_hidden_state[:, -1] for end in ends]
            states = torch.stack(rows, 1)
        kernel, bias = self.head
        probs = (states @ kernel + bias).softmax(-1)
        return probs.gather(-1, self.owners[:, None, None].expand(-1, len(ends), 1))[..., 0]

    def rewards(self, shares: torch.Tensor) -> torch.Tensor:
        """Mean cost of the prefixes up to each token's, [B, R]."""
        width = self.settings.max_new_tokens
        costs = (torch.log1p(-shares.clamp(1e-6, 1 - 1e-6)) / self.settings.scale).clamp(-1, 0)
        place = torch.arange(width, device=self.device)
        of_token = costs[:, place // -(-width // self.settings.slices)]
        return of_token.cumsum(1) / (place + 1)

    def advantages(self, rewards: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Generalised advantages, from the last token on."""
        gamma, lam = self.settings.gamma, self.settings.gae_lambda
        later, following, found = 0.0, 0.0, []
        for t in reversed(range(rewards.shape[1])):
            later = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * later
            following = values[:, t]
            found.append(later)
        return torch.stack(found[::-1], 1)


def adapted(
    model: torch.nn.Module, adapter: AdapterConfig, factors: Mapping[str, Any]
) -> peft.PeftModel:
    """The model with our factors."""
    settings = peft.LoraConfig(
        r=adapter.rank, lora_alpha=adapter.alpha, target_modules=LINEAR, lora_dropout=0.0
    )
    found = peft.get_peft_model(model, settings)
    for name, module in found.named_modules():
        if not name.endswith("_proj"):
            continue
        *_, layer, part, leaf = name.split(".")
        group = {"self_attn": "attention", "mlp": "mlp"}[part]
        own = factors["layers"][group][leaf.removesuffix("_proj")]
        with torch.no_grad():
            for side, weight in (("a", module.lora_A), ("b", module.lora_B)):
                weight.default.weight.copy_(torch.tensor(np.asarray(own[side][int(layer)]).T))
    return found


def trunk(model: torch.nn.Module) -> torch.nn.Module:
    """The model below its output layer, with its adapter if it has one."""
    bare = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    return bare.model
