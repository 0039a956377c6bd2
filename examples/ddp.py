"""Train a timm model on one process or under torchrun, on CPUs too, out of the parts that timm's train.py is made of.

    python -m timm_mobilenext examples/ddp.py --config recipes/finetune.yaml --data-dir DIR --num-classes N
    torchrun --nproc-per-node 2 -m timm_mobilenext examples/ddp.py ...
    torchrun --nproc-per-node 2 --max-restarts 3 -m timm_mobilenext --resume-newest DIR examples/ddp.py --output DIR ...

timm's train.py does more, and is the script to use, but cannot run distributed on CPUs: it hands DDP a device id, which
PyTorch refuses there. The options here have its names and meanings, and --config takes the recipes written for it.

An epoch depends on the checkpoint before it and on the seed alone, so that a training which was stopped, or killed, and
resumed ends with the weights of one that was not.
"""
import argparse
import csv
import faulthandler
import hashlib
import multiprocessing
import os
import sys
from pathlib import Path

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
from timm.task import ClassificationTask

# what a recipe may set beside the options below, with train.py's defaults
RECIPE_ONLY = dict(
    ratio=None, hflip=0.5, color_jitter=0.4, aa=None, reprob=0., remode='pixel', smoothing=0.1,
    train_interpolation='random', drop=0., drop_path=None, lr_base=0.1, lr_base_size=256, lr_base_scale='',
    clip_grad=None, model_ema=False, model_ema_decay=0.9998, model_ema_warmup=False, channels_last=False,
    momentum=0.9, sched='cosine', sched_on_updates=False)


def parse_args() -> argparse.Namespace:
    """Return the options, their defaults taken from the recipe as train.py takes them."""
    config = argparse.ArgumentParser(add_help=False)
    config.add_argument('-c', '--config', type=Path, help='YAML file of options')
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], parents=[config])
    parser.add_argument('--dataset', default='', help='as in timm, "torch/fashion_mnist" (default: a folder of images)')
    parser.add_argument('--data-dir', required=True, help='root of the dataset')
    parser.add_argument('--train-split', default='train', help='(default: %(default)s)')
    parser.add_argument('--val-split', default='validation', help='(default: %(default)s)')
    parser.add_argument('--model', default='mobilenext_100', help='architecture (default: %(default)s)')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=utils.ParseKwargs, help='e.g. width_mult=0.4')
    parser.add_argument('--num-classes', type=int, help="(default: the model's)")
    parser.add_argument('--in-chans', type=int, default=3, help='(default: %(default)s)')
    parser.add_argument('--img-size', type=int, help="pixels (default: the model's)")
    parser.add_argument('--mean', type=float, nargs='+', help="per channel (default: the model's)")
    parser.add_argument('--std', type=float, nargs='+', help="per channel (default: the model's)")
    parser.add_argument('--scale', type=float, nargs=2, help='share of the image in a crop (default: 0.08 1)')
    parser.add_argument('-b', '--batch-size', type=int, default=128, help='per process (default: %(default)s)')
    parser.add_argument('-j', '--workers', type=int, default=1, help='data workers per process (default: %(default)s)')
    parser.add_argument('--start-method', choices=('fork', 'forkserver', 'spawn'), help="workers' (default: Python's)")
    parser.add_argument('--opt', default='sgd', help='optimizer (default: %(default)s)')
    parser.add_argument('--lr', type=float, help='(default: lr_base of the recipe, scaled by the global batch size)')
    parser.add_argument('--weight-decay', type=float, default=2e-5, help='(default: %(default)s)')
    parser.add_argument('--layer-decay', type=float, help='factor of the learning rate per layer (default: none)')
    parser.add_argument('--freeze-bn', action='store_true', help='keep statistics and weights of all batch norms')
    parser.add_argument('--epochs', type=int, default=300, help='(default: %(default)s)')
    parser.add_argument('--warmup-epochs', type=int, default=5, help='(default: %(default)s)')
    parser.add_argument('--seed', type=int, default=42, help='(default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='(default: %(default)s)')
    parser.add_argument('--output', default='output', help='folder to write into (default: %(default)s)')
    parser.add_argument('--resume', default='', help='checkpoint to go on from')
    parser.set_defaults(**RECIPE_ONLY)
    recipe, _ = config.parse_known_args()
    if recipe.config:
        parser.set_defaults(**yaml.safe_load(recipe.config.read_text()))
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
            color_jitter=args.color_jitter, auto_augment=args.aa, re_prob=args.reprob, re_mode=args.remode,
            interpolation=args.train_interpolation if is_training else config['interpolation'],
            # workers that persist would take their random numbers from one epoch into the next
            num_workers=args.workers, persistent_workers=args.workers > 0 and not is_training,
            distributed=args.distributed, use_prefetcher=False, device=device))
    return loaders


def resume_records(saver: utils.CheckpointSaver, output: str, start_epoch: int) -> None:
    """Give the saver its checkpoints and best metric back, and take later epochs out of the summary.

    The last epoch is saved a second time, which does what a kill in the middle of that has left undone.
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
def validate(model: torch.nn.Module, loader: torch.utils.data.DataLoader, args: argparse.Namespace) -> dict[str, float]:
    """Return the top-1 accuracy in percent."""
    model.eval()
    correct = torch.zeros((), device=args.device)
    count = 0
    for images, labels in loader:
        correct += (model(images.to(args.device)).argmax(1) == labels.to(args.device)).sum()
        count += len(labels)
    return {'top1': 100 * mean_over_ranks(correct, count, args)}


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
    model = timm.create_model(
        args.model, num_classes=args.num_classes, in_chans=args.in_chans, drop_rate=args.drop,
        drop_path_rate=args.drop_path, **args.model_kwargs)
    if args.freeze_bn:
        model = freeze_batch_norm_2d(model)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory_format)
    train_loader, val_loader = create_loaders(args, model, device)

    args.lr = args.lr or scale_lr(args)
    optimizer = create_optimizer_v2(model, **optimizer_kwargs(cfg=args))
    start_epoch = resume_checkpoint(model, args.resume, optimizer, log_info=False) if args.resume else 0
    if args.distributed:
        epochs = [0] * args.world_size
        torch.distributed.all_gather_object(epochs, start_epoch)
        if len(set(epochs)) > 1:
            sys.exit(
                f'The ranks start with epochs {epochs}, expected one for all: --resume must be a file that is the same '
                'on all machines.')
    ema = None
    if args.model_ema:
        ema = utils.ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup)
        if args.resume:
            load_checkpoint(ema.module, args.resume, use_ema=True)
    task = ClassificationTask(model, LabelSmoothingCrossEntropy(args.smoothing), device=device, verbose=False)
    if args.distributed:
        # there are no unused parameters, but DDP would else sum in another order after the first step of each start
        task.prepare_distributed(
            device_ids=None if device.type == 'cpu' else [device], find_unused_parameters=True)

    steps = len(train_loader)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=steps)
    if start_epoch and args.sched_on_updates:
        scheduler.step_update(start_epoch * steps)
    elif start_epoch:
        scheduler.step(start_epoch)

    saver = None
    if utils.is_primary(args):
        os.makedirs(args.output, exist_ok=True)
        saver = utils.CheckpointSaver(
            model, optimizer, model_ema=ema, checkpoint_dir=args.output, recovery_dir=args.output,
            max_history=2)  # one to go back to if the newest is damaged, of which last and model_best may be links
        resume_records(saver, args.output, start_epoch)
    for epoch in range(start_epoch, num_epochs):
        utils.random_seed(args.seed + epoch * args.world_size, args.rank)  # other augmentations on each, every epoch
        if args.distributed:
            train_loader.sampler.set_epoch(epoch)
        task.train()
        total = torch.zeros((), device=device)
        for step, (images, labels) in enumerate(train_loader, start=epoch * steps + 1):
            images = images.to(device, memory_format=memory_format)
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
        lr = max(group['lr'] for group in optimizer.param_groups)
        for module in (model, ema):
            if args.distributed and module:
                utils.distribute_bn(module, args.world_size, reduce=True)
        train_metrics = {'loss': mean_over_ranks(total, steps, args)}
        val_metrics = validate(ema.module if ema else model, val_loader, args)
        if saver:
            utils.update_summary(
                epoch, train_metrics, val_metrics, Path(args.output, 'summary.csv'), lr=lr,
                write_header=not Path(args.output, 'summary.csv').exists())
            saver.save_checkpoint(epoch, metric=val_metrics['top1'])
            print(
                f'epoch {epoch}: lr {lr:.3e}, loss {train_metrics["loss"]:.3f}, top-1 {val_metrics["top1"]:.2f} %',
                flush=True)
        scheduler.step(epoch + 1)

    digest = hashlib.sha256(b''.join(v.cpu().numpy().tobytes() for v in model.state_dict().values())).hexdigest()
    print(f'rank {args.rank} of {args.world_size}: {num_epochs * steps} updates, weights {digest[:16]}')
    if args.distributed:
        torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main()
