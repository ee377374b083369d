# The demo's photos at x2, as `make demo` writes them.
scale = 2

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='BasicSRDataset',
        phase='train',
        scale=scale,
        dataset=dict(
            name='photos',
            type='PairedImageDataset',
            dataroot_gt='datasets/demo/demo_train_HR_sub.lmdb',
            dataroot_lq='datasets/demo/demo_train_LR_bicubic_X2_sub.lmdb',
            io_backend=dict(type='lmdb'),
            gt_size=48,
            use_hflip=True,
            use_rot=True)))

val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='BasicSRDataset',
        phase='val',
        scale=scale,
        dataset=dict(
            name='astronaut',
            type='PairedImageDataset',
            dataroot_gt='datasets/demo/val/GTmod2',
            dataroot_lq='datasets/demo/val/LRbicx2',
            io_backend=dict(type='disk'))))

val_evaluator = [dict(type='PSNR', crop_border=scale), dict(type='SSIM', crop_border=scale)]
test_dataloader = val_dataloader
test_evaluator = val_evaluator
