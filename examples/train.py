"""Train a timm model on one process or under torchrun, also on CPUs, with the functions that timm's train.py uses.

    python -m timm_mobilenext examples/train.py --config scratch.yaml --data-dir DIR --num-classes N
    torchrun --nproc-per-node 2 -m timm_mobilenext examples/train.py ...
    torchrun --nproc-per-node 2 -m timm_mobilenext --resume-newest DIR examples/train.py --output DIR ...

Use timm's train.py, which does more, unless you train distributed on CPUs: there PyTorch refuses the device id that it
gives to DDP. The options here have the names, meanings and defaults of timm's, and --config takes recipes.

An epoch depends only on the checkpoint before it and on the seed: a training that was stopped or killed, and resumed,
ends with the weights of one that was not.
"""
import argparse
import csv
import faulthandler
import hashlib
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed
import yaml
from timm import utils
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.layers import freeze_batch_norm_2d
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import load_checkpoint, resume_checkpoint
from timm.optim import create_optimizer_v2, optimizer_kwargs
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler
from timm.task import ClassificationTask

# options of timm's train.py that are used here: name -> default
OPTIONS = dict(
    opt='sgd', opt_eps=None, momentum=0.9, weight_decay=2e-5, clip_grad=None, layer_decay=None,
    lr=None, lr_base=0.1, lr_base_size=256, lr_base_scale='', sched='cosine', sched_on_updates=False, epochs=300,
    warmup_epochs=5, cooldown_epochs=0, warmup_lr=1e-5, min_lr=0., decay_epochs=90., decay_rate=0.1,
    scale=[0.08, 1.], ratio=[3 / 4, 4 / 3], hflip=0.5, vflip=0., color_jitter=0.4, aa='', reprob=0., remode='pixel',
    train_interpolation='random', smoothing=0.1, drop=0., drop_path=None, bn_momentum=None, dist_bn='reduce',
    model_ema=False, model_ema_decay=0.9998, model_ema_warmup=False, channels_last=False)
UPDATES = 100  # with fewer a network that starts from random weights stays at chance, docs/training.md


def add_option(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    """Add an option of train.py with its default, which gives its type; None stands for a number."""
    option = '--' + name.replace('_', '-')
    shown = '(default: none)' if default in (None, '') else '(default: %(default)s)'
    if default is False:
        parser.add_argument(option, action='store_true')
    elif isinstance(default, list):
        parser.add_argument(option, type=float, nargs=len(default), default=default, help=shown)
    else:
        kind = float if default is None else type(default)
        parser.add_argument(option, type=kind, default=default, metavar=kind.__name__.upper(), help=shown)


def parse_args() -> argparse.Namespace:
    """Return the options, with the recipe's values as defaults, as in train.py."""
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument('-c', '--config', type=Path, help='YAML file of options')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[config])
    add = parser.add_argument
    add('--dataset', default='', help='as in timm, e.g. torch/fashion_mnist (default: a folder of images)')
    add('--data-dir', required=True, help='root of the dataset')
    add('--train-split', default='train', help='(default: %(default)s)')
    add('--val-split', default='validation', help='(default: %(default)s)')
    add('--model', default='mobilenext_100', help='architecture (default: %(default)s)')
    add('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs, help='e.g. width_mult=0.4')
    add('--pretrained', action='store_true', help='start from pretrained weights')
    add('--pretrained-path', help='file of these weights')
    add('--num-classes', type=int, help="(default: the model's)")
    add('--in-chans', type=int, default=3, help='(default: %(default)s)')
    add('--img-size', type=int, help="pixels (default: the model's)")
    add('--mean', type=float, nargs='+', help="per channel (default: the model's)")
    add('--std', type=float, nargs='+', help="per channel (default: the model's)")
    add('-b', '--batch-size', type=int, default=128, help='per process (default: %(default)s)')
    add('-j', '--workers', type=int, default=1, help='data workers per process (default: %(default)s)')
    add('--start-method', choices=('fork', 'forkserver', 'spawn'), help="workers' (default: Python's)")
    add('--freeze-bn', action='store_true', help='keep statistics and weights of all batch norms')
    add('--seed', type=int, default=42, help='(default: %(default)s)')
    add('--device', default='cpu', help='(default: %(default)s)')
    add('--output', default='output', help='folder to write into (default: %(default)s)')
    add('--resume', default='', help='checkpoint to resume from')
    for name, default in OPTIONS.items():
        add_option(parser, name, default)
    recipe = config.parse_known_args()[0].config
    if recipe:
        options = yaml.safe_load(recipe.read_text())
        unknown = options.keys() - {action.dest for action in parser._actions} - {'device_modules', 'log_interval'}
        if unknown:
            parser.error(f"{recipe} has options that only timm's train.py has: {', '.join(sorted(unknown))}.")
        parser.set_defaults(**options)
    return parser.parse_args()


def scale_lr(args: argparse.Namespace) -> float:
    """Return the learning rate for the global batch size, by train.py's rule."""
    ratio = args.batch_size * args.world_size / args.lr_base_size
    scale = args.lr_base_scale or ('sqrt' if any(name in args.opt for name in ('ada', 'lamb')) else 'linear')
    return args.lr_base * ratio ** (0.5 if scale == 'sqrt' else 1)


def create_loaders(args: argparse.Namespace, model: torch.nn.Module, device: torch.device) -> list:
    """Return the loaders of the training and the validation images."""
    config = resolve_data_config(vars(args), model=model)
    loaders = []
    for split, is_training in ((args.train_split, True), (args.val_split, False)):
        dataset = create_dataset(
            args.dataset, root=args.data_dir, split=split, is_training=is_training,
            input_img_mode='L' if args.in_chans == 1 else 'RGB')
        loaders.append(create_loader(
            dataset, config['input_size'], args.batch_size, is_training=is_training, mean=config['mean'],
            std=config['std'], crop_pct=config['crop_pct'], scale=args.scale, ratio=args.ratio, hflip=args.hflip,
            vflip=args.vflip, color_jitter=args.color_jitter, auto_augment=args.aa or None,
            re_prob=args.reprob, re_mode=args.remode,
            interpolation=args.train_interpolation if is_training else config['interpolation'],
            # workers that persist would take their random numbers from one epoch into the next
            num_workers=args.workers, persistent_workers=args.workers > 0 and not is_training,
            distributed=args.distributed, use_prefetcher=False, device=device))
    return loaders


def resume_records(saver: utils.CheckpointSaver, output: str, start_epoch: int) -> None:
    """Tell the saver its checkpoints and best metric, and remove later epochs from the summary.

    The last epoch is saved a second time, since a kill may have interrupted the first.
    """
    summary = Path(output, 'summary.csv')
    if not summary.exists():
        return
    with summary.open(newline='') as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row['epoch']) < start_epoch]
    if not rows:
        summary.unlink()
        return
    with summary.with_suffix('.tmp').open('w', newline='') as file:
        writer = csv.DictWriter(file, reader.fieldnames)
        writer.writeheader()
        writer.writerows(rows)
    summary.with_suffix('.tmp').replace(summary)
    for row in rows:
        epoch, metric = int(row['epoch']), float(row['eval_top1'])
        if epoch == start_epoch - 1:
            saver.save_checkpoint(epoch, metric)
            continue
        if saver.best_metric is None or metric > saver.best_metric:
            saver.best_epoch, saver.best_metric = epoch, metric
        path = os.path.join(output, f'checkpoint-{epoch}.pth.tar')
        if os.path.exists(path):
            saver.checkpoint_files.append((path, metric))
            saver.checkpoint_files.sort(key=lambda file: file[1], reverse=True)


def mean_over_ranks(total: torch.Tensor, count: int, args: argparse.Namespace) -> float:
    """Return total / count, both summed over the ranks first."""
    sums = torch.stack([total.double(), torch.tensor(float(count), device=total.device)])
    if args.distributed:
        torch.distributed.all_reduce(sums)
    return (sums[0] / sums[1]).item()


@torch.inference_mode()
def validate(model: torch.nn.Module, loader: torch.utils.data.DataLoader, args: argparse.Namespace) -> float:
    """Return the top-1 accuracy in percent."""
    model.eval()
    correct = torch.zeros((), device=args.device)
    count = 0
    for images, labels in loader:
        correct += (model(images.to(args.device)).argmax(1) == labels.to(args.device)).sum()
        count += len(labels)
    return 100 * mean_over_ranks(correct, count, args)


def create_model(args: argparse.Namespace, device: torch.device) -> torch.nn.Module:
    """Return the model, on its device."""
    overlay = dict(file=args.pretrained_path, num_classes=-1) if args.pretrained_path else None  # -1: a new classifier
    model = timm.create_model(
        args.model, pretrained=args.pretrained, pretrained_cfg_overlay=overlay, num_classes=args.num_classes,
        in_chans=args.in_chans, drop_rate=args.drop, drop_path_rate=args.drop_path, bn_momentum=args.bn_momentum,
        **args.model_kwargs)
    if args.freeze_bn:
        model = freeze_batch_norm_2d(model)
    return model.to(device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)


def create_task(model: torch.nn.Module, device: torch.device, args: argparse.Namespace) -> ClassificationTask:
    """Return the model with its loss, distributed under torchrun."""
    task = ClassificationTask(model, LabelSmoothingCrossEntropy(args.smoothing), device=device, verbose=False)
    if args.distributed:
        # without unused parameters too: otherwise DDP sums in another order after the first step of each start
        task.prepare_distributed(device_ids=None if device.type == 'cpu' else [device], find_unused_parameters=True)
    return task


def check_start_epochs(start_epoch: int, args: argparse.Namespace) -> None:
    """End the program if the ranks start with different epochs."""
    epochs: list[Any] = [start_epoch] * args.world_size
    if args.distributed:
        torch.distributed.all_gather_object(epochs, start_epoch)
    if len(set(epochs)) > 1:
        sys.exit(
            f'The ranks start with epochs {epochs}, expected one for all: --resume must be a file that is the same on '
            'all machines.')


def print_updates(updates: int, args: argparse.Namespace) -> None:
    """Print how many updates there will be, and a warning if they are too few to learn anything."""
    is_short = updates < UPDATES and not (args.pretrained or args.resume)
    advice = ': expect chance. Give a smaller --batch-size or more --epochs.' if is_short else '.'
    print(f'{updates} updates in all{advice}')


def train_epoch(
        epoch: int,
        task: ClassificationTask,
        ema: utils.ModelEmaV3 | None,
        loader: torch.utils.data.DataLoader,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        args: argparse.Namespace,
) -> float:
    """Train for an epoch and return the mean loss over all ranks."""
    utils.random_seed(args.seed + epoch * args.world_size, args.rank)  # other augmentations on each, every epoch
    if args.distributed:
        loader.sampler.set_epoch(epoch)
    task.train()
    model, device = utils.unwrap_model(task.trainable_module), torch.device(args.device)
    total = torch.zeros((), device=device)
    for step, (images, labels) in enumerate(loader, start=epoch * len(loader) + 1):
        images = images.to(
            device, memory_format=torch.channels_last if args.channels_last else torch.contiguous_format)
        loss = task(images, labels.to(device))['loss']
        optimizer.zero_grad()
        loss.backward()
        if args.clip_grad:
            utils.dispatch_clip_grad(model.parameters(), args.clip_grad)
        optimizer.step()
        scheduler.step_update(step)
        if ema:
            ema.update(model, step=step)
        total += loss.detach()
    if args.distributed and args.dist_bn:
        for module in filter(None, (model, ema)):
            utils.distribute_bn(module, args.world_size, reduce=args.dist_bn == 'reduce')
    return mean_over_ranks(total, len(loader), args)


def main() -> None:
    """Train the model."""
    args = parse_args()
    if args.start_method:
        multiprocessing.set_start_method(args.start_method)
    # After a restart gloo can be given the address of a process that is gone, and waits for it for 150 minutes.
    faulthandler.dump_traceback_later(300, exit=True)
    device = utils.init_distributed_device(args)
    faulthandler.cancel_dump_traceback_later()
    utils.random_seed(args.seed)  # the same weights on all ranks, so that all averages start equal
    model = create_model(args, device)
    train_loader, val_loader = create_loaders(args, model, device)
    steps = len(train_loader)
    if not steps:
        sys.exit(f'{args.data_dir} has fewer training images than one batch: give a smaller --batch-size.')

    args.lr = args.lr or scale_lr(args)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    start_epoch = resume_checkpoint(model, args.resume, optimizer, log_info=False) if args.resume else 0
    check_start_epochs(start_epoch, args)
    ema = None
    if args.model_ema:
        ema = utils.ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if args.resume:
            load_checkpoint(ema.module, args.resume, use_ema=True)
    task = create_task(model, device, args)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=steps)
    if start_epoch and args.sched_on_updates:
        scheduler.step_update(start_epoch * steps)
    elif start_epoch:
        scheduler.step(start_epoch)

    summary, saver = Path(args.output, 'summary.csv'), None
    if utils.is_primary(args):
        print_updates(num_epochs * steps, args)
        os.makedirs(args.output, exist_ok=True)
        saver = utils.CheckpointSaver(
            model, optimizer, model_ema=ema, checkpoint_dir=args.output, recovery_dir=args.output,
            max_history=2)  # one to go back to if the newest is damaged, of which last and model_best may be links
        resume_records(saver, args.output, start_epoch)
    for epoch in range(start_epoch, num_epochs):
        loss = train_epoch(epoch, task, ema, train_loader, optimizer, scheduler, args)
        lr = max(group['lr'] for group in optimizer.param_groups)
        top1 = validate(ema.module if ema else model, val_loader, args)
        if saver:
            utils.update_summary(
                epoch, dict(loss=loss), dict(top1=top1), summary, lr=lr, write_header=not summary.exists())
            saver.save_checkpoint(epoch, metric=top1)
            print(f'epoch {epoch}: lr {lr:.3e}, loss {loss:.3f}, top-1 {top1:.2f} %', flush=True)
        scheduler.step(epoch + 1)

    digest = hashlib.sha256(b''.join(v.cpu().numpy().tobytes() for v in model.state_dict().values())).hexdigest()
    print(f'rank {args.rank} of {args.world_size}: {num_epochs * steps} updates, weights {digest[:16]}')
    if args.distributed:
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
