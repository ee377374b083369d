# DIV2K for training, Set5, Set14, B100 and Urban100 for validation at x4, as udl-prepare writes them (docs/data.md).
scale = 4

train_dataloader = dict(
    batch_size=64,  # the authors' batch size, on one GPU; write 16 for 4 GPUs
    num_workers=6,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='BasicSRDataset',
        phase='train',
        scale=scale,
        dataset=dict(
            name='DIV2K',
            type='PairedImageDataset',
            dataroot_gt='datasets/DIV2K/DIV2K_train_HR_sub.lmdb',
            dataroot_lq='datasets/DIV2K/DIV2K_train_LR_bicubic_X4_sub.lmdb',
            io_backend=dict(type='lmdb'),
            gt_size=192,  # LR patches of 48
            use_hflip=True,
            use_rot=True)))

val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ConcatDataset',
        datasets=[
            dict(
                type='BasicSRDataset',
                phase='val',
                scale=scale,
                dataset=dict(
                    name=name,
                    type='PairedImageDataset',
                    dataroot_gt=f'datasets/{name}/GTmod4',
                    dataroot_lq=f'datasets/{name}/LRbicx4',
                    io_backend=dict(type='disk')))
            for name in ('Set5', 'Set14', 'B100', 'Urban100')]))

val_evaluator = [dict(type='PSNR', crop_border=scale), dict(type='SSIM', crop_border=scale)]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
